"""what each round of a batch logs, and its number of rollouts -> one entry per name for the batch."""

from collections.abc import Mapping, Sequence


# Metrics that add up over the rounds of a batch.
TOTALS = (
    *("gain/seconds", "gain/forwards", "gain/failed_probes", "shaping/seconds", "states/seconds"),
    *("rollouts/sampling_seconds", "rollouts/tool_seconds", "tools/retries"),
)


class RoundLog:
    """Collects what the rounds of a batch add to a log, and puts in one entry per name for the batch.

    A log averages over its entries, and a round of a few groups must not weigh as much as the round of all groups.
    """

    def __init__(self, log: dict[str, list[float]]):
        self._log = log
        self._begun = {name: len(entries) for name, entries in log.items()}
        self._rounds: list[tuple[int, dict[str, list[float]]]] = []

    def end_round(self, rollouts: int) -> None:
        """Take out of the log what this round has added; `rollouts` is its number of rollouts."""
        added = {name: entries[self._begun.get(name, 0) :] for name, entries in self._log.items()}
        for name in added:
            del self._log[name][self._begun.get(name, 0) :]
        self._rounds.append((rollouts, {name: entries for name, entries in added.items() if entries}))

    def end_batch(self) -> None:
        """Put the rounds' combined values into the log; the values of a single round go back unchanged."""
        if len(self._rounds) == 1:
            ((_, together),) = self._rounds
        else:
            means = [(n, {name: sum(of) / len(of) for name, of in added.items()}) for n, added in self._rounds]
            together = {name: [value] for name, value in over_rounds(means).items()}
        for name, entries in together.items():
            self._log[name].extend(entries)


def over_rounds(rounds: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Combine the scalars of rounds, each given with its number of rollouts.

    A mean is weighted by the rollouts of its round; of maxima ("max" in the last part of the name) the largest is
    taken, of minima the smallest; seconds and counts of work (`TOTALS`) add up. Values that a round does not have
    (NaN, or no entry) are left out.

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
    if "max" in words or name in ("num_tokens", "tools/hung"):  # the run itself counts these two up
        return max(values)
    if "min" in words:
        return min(values)
    return sum(rollouts * value for rollouts, value in entries) / sum(rollouts for rollouts, _ in entries)
