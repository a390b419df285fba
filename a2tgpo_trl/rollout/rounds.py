"""what the rounds of a batch log, each of so many rollouts -> one entry of each name for the batch."""

from collections.abc import Mapping, Sequence


# What adds up over the rounds of a batch.
TOTALS = (
    *("gain/seconds", "gain/forwards", "gain/failed_probes", "shaping/seconds", "states/seconds"),
    *("rollouts/sampling_seconds", "rollouts/tool_seconds", "tools/retries"),
)


class RoundLog:
    """What the rounds of a batch add to a log, round by round -> one entry of each name for the batch.

    A log averages over its entries, and a round of a few groups must not weigh as much as that of all.
    """

    def __init__(self, log: dict[str, list[float]]):
        self._log = log
        self._begun = {name: len(entries) for name, entries in log.items()}
        self._rounds: list[tuple[int, dict[str, list[float]]]] = []

    def end_round(self, rollouts: int) -> None:
        """Take out what this round has added, a round of so many rollouts."""
        added = {name: entries[self._begun.get(name, 0) :] for name, entries in self._log.items()}
        for name in added:
            del self._log[name][self._begun.get(name, 0) :]
        self._rounds.append((rollouts, {name: entries for name, entries in added.items() if entries}))

    def end_batch(self) -> None:
        """Put in what the rounds say together; of a single round, what it said."""
        if len(self._rounds) == 1:
            ((_, together),) = self._rounds
        else:
            means = [(n, {name: sum(of) / len(of) for name, of in added.items()}) for n, added in self._rounds]
            together = {name: [value] for name, value in over_rounds(means).items()}
        for name, entries in together.items():
            self._log[name].extend(entries)


def over_rounds(rounds: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Scalars of rounds of so many rollouts each, as those of all their rollouts.

    A mean weighs as many as the rollouts of its round; a maximum ("max" in its last word) is that of all, a minimum
    likewise; seconds and counts of work (`TOTALS`) add up. What a round does not know (NaN, or no entry) is left out.

    Example: 16 rollouts with reward 0.375, gain/seconds 2; then 4 with 0, 1 -> reward 0.3, gain/seconds 3
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for rollouts, scalars in rounds:
        for name, value in scalars.items():
            if value == value:
                found.setdefault(name, []).append((rollouts, value))
    return {name: _together(name, entries) for name, entries in found.items()}


def _together(name: str, entries: Sequence[tuple[int, float]]) -> float:
    words = name.split("/")[-1].split("_")
    values = [value for _, value in entries]
    if name in TOTALS:
        return sum(values)
    if "max" in words or name in ("num_tokens", "tools/hung"):  # these two are counted up by the run itself
        return max(values)
    if "min" in words:
        return min(values)
    return sum(rollouts * value for rollouts, value in entries) / sum(rollouts for rollouts, _ in entries)
