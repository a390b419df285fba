"""a run's log and records -> curves over steps; sums and counts by turn, from which to take means over steps."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from ..report.plots import SHARES
from ..report.series import is_number
from ..rollout.failures import STATUSES
from ..rollout.reading import Record, plain
from ..study.mechanism import with_credit
from ..study.spreads import envelope, of_tool_turn
from ..turns import LOGGED_TURNS
from .run import Run


# Those that a run logged are drawn from the start; others can be chosen on the page.
METRICS = (
    *SHARES,
    "reward",
    "entropy",
    "clip_fraction/mean",
    "gain/mean",
    "turns/mean",
    "groups/teach_nothing",
    "tools/failure_frequency",
)
LOGGED_BY_TURN = {"turn_ratio": "turn_ratio/turn_{}", "clip_fraction": "clip_fraction/turn_{}"}
OF_TOOL_TURNS = {"gain": "gains", "score": "scores", "credit": "credit"}
OF_ALL_TURNS = {"advantage": "advantages", "clip_scale": "clip_scale"}  # including the answer turn
STATUS = "status/"

Numbers = dict[str, float]
Curve = tuple[list[int], list[float]]
Pairs = list[tuple[float, int]]  # for each turn, a sum and its number of terms
Sums = tuple[list[float], list[int]]  # the same as two lists


def by_step(run: Run) -> dict[str, Curve]:
    """Return each logged number by step; for steps not logged yet, what their records tell."""
    found: dict[str, Curve] = {}
    recorded = {step: of_records(batch) for step, batch in batches(run.records)}
    for step, numbers in sorted(shown_by_step(of_log(run.log), recorded).items()):
        for name, value in numbers.items():
            steps, values = found.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return found


def shown_by_step(logged: dict[int, Numbers], recorded: dict[int, Numbers]) -> dict[int, Numbers]:
    """Example: steps 10 and 20 were logged, 1, 11 and 21 recorded -> 10 and 20 as they were logged, and 21"""
    last = max(logged, default=-1)
    return logged | {step: numbers for step, numbers in recorded.items() if step > last}


def of_log(log: Sequence[dict[str, Any]]) -> dict[int, Numbers]:
    """Return the numbers of each logged training step."""
    found: dict[int, Numbers] = {}
    for entry in log:
        if "reward" in entry:
            numbers = {plain(name): value for name, value in entry.items() if is_number(value)}
            found.setdefault(entry["step"], {}).update(
                {k: v for k, v in numbers.items() if k not in ("step", "epoch")}
            )
    return found


def of_records(batch: Sequence[Record]) -> Numbers:
    """Return what a step's records tell about it, under the names used in the log."""
    numbers: dict[str, list[float | None]] = {
        "turns/mean": [float(len(record["advantages"])) for record in batch if record["advantages"]],
        "reward": [record["outcome"] for record in batch],
        "gain/mean": [gain for record in batch for gain in record.get("gains", ())],
    }
    for name in batch[0]["rewards"]:
        numbers[plain(f"rewards/{name}/mean")] = [record["rewards"].get(name) for record in batch]
    known = {name: [value for value in values if value is not None] for name, values in numbers.items()}
    return {name: fmean(values) for name, values in known.items() if values}


def batches(records: Sequence[Record]) -> Iterator[tuple[int, list[Record]]]:
    """Yield the records of each step, with all its ranks and batches together."""
    for step, batch in groupby(sorted(records, key=lambda record: record["step"]), key=lambda record: record["step"]):
        yield step, list(batch)


def _known(batch: Sequence[Record]) -> list[Record]:
    """Return the records whose advantages are numbers; a run that went wrong may have others."""
    return [record for record in batch if None not in record["advantages"]]


def adds_credit(batch: Sequence[Record]) -> bool:
    """Whether a step's method adds credit to the outcomes' advantages; one record with credit shows it for all."""
    return any(record["credit"] for record in with_credit(_known(batch)))


def envelopes(run: Run) -> dict[str, Curve]:
    """Return the smallest, the mean and the largest advantage of a turn, by step."""
    found: dict[str, Curve] = {}
    for step, batch in batches(run.records):
        for name, value in envelope_of(batch).items():
            steps, values = found.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return found


def envelope_of(batch: Sequence[Record]) -> Numbers:
    """Example: advantages 0.5 and -1 -> {"smallest": -1, "mean": -0.25, "largest": 0.5}"""
    return {name.removeprefix("advantages/"): value for name, value in envelope(_known(batch))}


# ---- by turn


def by_turn(run: Run) -> dict[str, Any]:
    """Return the steps of each metric, and for each step a sum and a count for each of the first turns.

    Example: gains 1 and 3 of first turns in step 5 -> {"gain": {"steps": [5], "sums": [[4.0, 0.0, ...]],
             "numbers": [[2, 0, ...]]}}
    """
    found: dict[str, Any] = {}
    steps = [(step, turns_of_batch(batch)) for step, batch in batches(run.records)]
    for step, metrics in [*steps, *((entry["step"], turns_of_log(entry)) for entry in run.log)]:
        for name, (sums, numbers) in metrics.items():
            metric = found.setdefault(name, {"steps": [], "sums": [], "numbers": []})
            metric["steps"].append(step)
            metric["sums"].append(sums)
            metric["numbers"].append(numbers)
    never = [name for name, metric in found.items() if name.startswith(STATUS) and not any(map(any, metric["sums"]))]
    return {name: metric for name, metric in found.items() if name not in never}


def turns_of_batch(batch: Sequence[Record]) -> dict[str, Sums]:
    """Return a sum and a count of each metric for each of the first turns of a step's rollouts."""
    return _by_metric(_of_batch(batch))


def turns_of_log(entry: dict[str, Any]) -> dict[str, Sums]:
    """Return the same for what is logged by turn; these are means already, so each counts as one term."""
    found: dict[str, Pairs] = {}
    for name, key in LOGGED_BY_TURN.items():
        values = [entry.get(key.format(place + 1)) for place in range(LOGGED_TURNS)]
        found[name] = [(value, 1) if is_number(value) else (0.0, 0) for value in values]
    return _by_metric(found)


def _by_metric(found: dict[str, Pairs]) -> dict[str, Sums]:
    return {
        name: ([total for total, _ in pairs], [number for _, number in pairs])
        for name, pairs in found.items()
        if any(number for _, number in pairs)
    }


def _of_batch(batch: Sequence[Record]) -> dict[str, Pairs]:
    credited, places = with_credit(_known(batch)), range(LOGGED_TURNS)
    statuses = [[turn["status"] for turn in record.get("turns", ())] for record in batch]
    rows: dict[str, list[Sequence[float | None]]] = {
        **{
            name: [[of_tool_turn(one, key, k) for k in places] for one in credited]
            for name, key in OF_TOOL_TURNS.items()
        },
        **{name: [record.get(key, ()) for record in batch] for name, key in OF_ALL_TURNS.items()},
        "survivors": [[float(place < len(record["advantages"])) for place in places] for record in batch],
        "failed": [[float(status != "ok") for status in of_rollout] for of_rollout in statuses],
        **{
            f"{STATUS}{name}": [[float(status == name) for status in of_rollout] for of_rollout in statuses]
            for name in STATUSES[1:]
        },
    }
    return {name: _sums(of_metric) for name, of_metric in rows.items()}


def _sums(rows: Sequence[Sequence[float | None]]) -> Pairs:
    """Return the sum and count for each of the first turns, over rollouts that have a number there.

    Example: [1, None], [3, 5] -> (4.0, 2), (5.0, 1), (0.0, 0) ...
    """
    pairs = []
    for place in range(LOGGED_TURNS):
        values = [row[place] for row in rows if place < len(row)]
        known = [value for value in values if value is not None]
        pairs.append((float(sum(known)), len(known)))
    return pairs
