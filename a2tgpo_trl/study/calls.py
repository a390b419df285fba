"""results of a study -> its table on whether to call at all."""

from collections.abc import Iterable

from ..report.scores import Estimate
from ..report.seeds import over_seeds
from .results import Results
from .study import Run
from .tables import Runs, over_runs, table


WITHOUT = "calls/share_of_0"
WORTH_TELLING = 0.05
OF_FIRST_CALLS = {  # metric -> its heading
    "by_turn/gains/mean_turn_1": "gain of a first call",
    "by_turn/scores/mean_turn_1": "its z-score",
    "by_turn/credit/mean_turn_1": "its credit",
}
EXPLAINED = (
    "The share of rollouts without a call, of those that were trained on since the evaluation before; and what the "
    "first calls of the others gained and were credited with, over all of training. A mean z-score of 0 says nothing "
    "on whether to call: that is left to the outcome."
)


def calls_table(results: Results, runs: Runs) -> list[str]:
    """Of a study in which one rollout of twenty or more answered at once, at some time, in some run.

    Example: of 32 rollouts before step 10, 8 made no call, and of 32 before step 20 none -> 0.250, 0.000
    """
    every = [point for of_cell in runs.values() for run in of_cell for point in results.curve(run, WITHOUT)]
    if not any(share >= WORTH_TELLING for _, share in every):
        return []
    steps = sorted({step for step, _ in every})
    rows = []
    for cell, of_cell in runs.items():
        shares = [_at(results, of_cell, step) for step in steps]
        first_calls = [over_runs(results, of_cell, metric) for metric in OF_FIRST_CALLS]
        rows.append([cell, *("" if one is None else one for one in (*shares, *first_calls))])
    head = ["cell", *(f"without a call, to step {step}" for step in steps), *OF_FIRST_CALLS.values()]
    return ["## Whether to call", "", EXPLAINED, "", *table(head, rows), ""]


def _at(results: Results, runs: Iterable[Run], step: int) -> Estimate | None:
    """Over the seeds that have it."""
    shares = [dict(results.curve(run, WITHOUT)).get(step) for run in runs]
    there = [share for share in shares if share is not None]
    return over_seeds(there) if there else None
