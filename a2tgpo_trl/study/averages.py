"""results of a study -> numbers of a cell: over a run's course, by turn, and over its seeds."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import numpy as np

from ..report.scores import Estimate
from ..report.seeds import over_seeds
from ..report.series import Curve
from ..turns import LOGGED_TURNS
from .results import Results
from .study import Run


Point = Callable[[Curve, int], float | None]  # a run's curve and last step -> a number, or None

AUC = "useful/auc/"
TURN = "_turn_"
FEWEST_TURNS = 8  # per measurement, for a depth to count


def mean(curve: Curve, end: int) -> float:
    return fmean(value for _, value in curve)


def first(curve: Curve, end: int) -> float:
    return curve[0][1]


def last(curve: Curve, end: int) -> float | None:
    """The value at the end of the run; None if it was last measured before that."""
    return curve[-1][1] if curve[-1][0] == end else None


def over_runs(results: Results, runs: Iterable[Run], metric: str, point: Point = mean) -> Estimate | None:
    """Return, over seeds, a point of each run's curve; None if no run has it."""
    return over_known(point(curve, results.end(run)) for run in runs if (curve := results.curve(run, metric)))


def over_known(values: Iterable[float | None]) -> Estimate | None:
    """Return the mean over the seeds that have a value; None if none has."""
    found = [value for value in values if value is not None]
    return over_seeds(found) if found else None


def auc_over_runs(results: Results, runs: Iterable[Run], name: str, part: str = "") -> Estimate | None:
    """Return, over seeds, the mean AUC of each run's stretches, weighted by their numbers of pairs.

    Most useless searches are in the first stretches, so in a plain mean one of a late stretch would count for many.

    Args:
        part: "" for all turns, "_turn_2" for those at a depth, "/hops 4" for those of some questions (which weigh as
            all turns do: their numbers are not measured).
    """
    found = []
    for run in runs:
        if curve := results.curve(run, f"{AUC}{name}{part}"):
            pairs = _pairs(results, run, name, part)
            total = sum(pairs[step] for step, _ in curve)
            found.append(sum(pairs[step] * value for step, value in curve) / total)
    return over_seeds(found) if found else None


def _pairs(results: Results, run: Run, name: str, part: str) -> dict[int, float]:
    """The number of pairs of a useful and a useless search in each stretch."""
    useful: defaultdict[int, float] = defaultdict(float)
    useless: defaultdict[int, float] = defaultdict(float)
    for place in [int(part.removeprefix(TURN))] if part.startswith(TURN) else range(1, LOGGED_TURNS + 1):
        shares = dict(results.curve(run, f"useful/share_turn_{place}"))
        for step, number in results.curve(run, f"by_turn/{name}/number_turn_{place}"):
            useful[step] += number * shares.get(step, 0.0)
            useless[step] += number * (1 - shares.get(step, 1.0))
    return {step: useful[step] * useless[step] for step in useful}


def measured_throughout(results: Results, runs: Sequence[Run], name: str) -> bool:
    """Whether all runs have this number of turns for every stretch of training in which tools were called.

    If a method credits answer turns, only stretches in which it happens not to have a `credit` (`mechanism.py`). Those
    are too few and too special to tell anything.
    """
    for run in runs:
        with_calls = [step for step, share in results.curve(run, "calls/share_of_0") if share < 1]
        if not with_calls or len(results.curve(run, f"by_turn/{name}/number_turn_1")) < len(with_calls):
            return False
    return True


def of_all(results: Results, runs: Sequence[Run], metric: str) -> bool:
    """Whether every run of a cell has the metric; numbers of turns that few rollouts reach are chance."""
    return bool(runs) and all(results.curve(run, metric) for run in runs)


# ---- by turn


def by_depth(results: Results, run: Run, name: str, of: str) -> dict[int, float]:
    """Return a mean or deviation for each depth: a run's measurements, weighted by their numbers of turns.

    Depths that few rollouts reach are left out, because their numbers are chance.
    """
    heights = {place: at_depth(results, run, name, of, place, FEWEST_TURNS) for place in range(1, LOGGED_TURNS + 1)}
    return {place: height for place, height in heights.items() if height is not None}


def at_depth(results: Results, run: Run, name: str, of: str, place: int, fewest: int = 1) -> float | None:
    """Return it for one depth; None if a measurement has fewer turns than the fewest on average."""
    turns = dict(results.curve(run, f"by_turn/{name}/number_turn_{place}"))
    values = dict(results.curve(run, f"by_turn/{name}/{of}_turn_{place}"))
    if not values or sum(turns.values()) < fewest * len(turns):
        return None
    return float(np.average(list(values.values()), weights=[turns[step] for step in values]))
