"""results of a study -> its table on whether to call tools at all."""

from collections.abc import Iterable

from ..report.scores import Estimate
from .averages import at_depth, over_known
from .comparison import Runs
from .results import Results
from .study import Run
from .tables import table


WITHOUT = "calls/share_of_0"
WORTH_TELLING = 0.05
OF_FIRST_CALLS = {"gains": "gain of a first call", "scores": "its z-score", "credit": "its credit"}
EXPLAINED = (
    "The share of rollouts without a call, among those recorded since the previous evaluation; and the mean gain and "
    "credit of the first calls of the other rollouts, over all of training. If the mean z-score is 0, gains say "
    "nothing about whether to call: only the outcome does."
)


def calls_table(results: Results, runs: Runs) -> list[str]:
    """Return the table if in some run, at some step, at least one rollout in twenty made no call; else nothing.

    Example: of 32 rollouts before step 10, 8 made no call, and of 32 before step 20 none -> 0.250, 0.000
    """
    every = [point for of_cell in runs.values() for run in of_cell for point in results.curve(run, WITHOUT)]
    if not any(share >= WORTH_TELLING for _, share in every):
        return []
    steps = sorted({step for step, _ in every})
    rows = []
    for cell, of_cell in runs.items():
        shares = [_at(results, of_cell, step) for step in steps]
        first_calls = [_of_first_calls(results, of_cell, name) for name in OF_FIRST_CALLS]
        rows.append([cell, *("" if one is None else one for one in (*shares, *first_calls))])
    head = ["cell", *(f"without a call, up to step {step}" for step in steps), *OF_FIRST_CALLS.values()]
    return ["## Whether to call", "", EXPLAINED, "", *table(head, rows), ""]


def _of_first_calls(results: Results, runs: Iterable[Run], name: str) -> Estimate | None:
    return over_known(at_depth(results, run, name, "mean", 1) for run in runs)


def _at(results: Results, runs: Iterable[Run], step: int) -> Estimate | None:
    """The mean at a step over the seeds that have it; None if none has."""
    return over_known(dict(results.curve(run, WITHOUT)).get(step) for run in runs)
