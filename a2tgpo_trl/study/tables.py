"""results of a study -> the tables of its report on what gains and credit are worth, and how they are spread.

A cell's number is the mean over its seeds of the mean over each run's measurements; for an AUC, these are weighted by
their numbers of pairs, for a number of turns by the turns.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..report.scores import Estimate
from ..report.seeds import over_seeds
from ..turns import LOGGED_TURNS
from .averages import (
    AUC,
    auc_over_runs,
    by_depth,
    first,
    last,
    measured_throughout,
    of_all,
    over_runs,
)
from .comparison import Runs, paired
from .results import SPENT, Results
from .spreads import QUANTILES
from .study import Run


STEP = "step_time"
FEWEST_SUMS = 8  # average number of sums per measurement that a variance needs


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def mechanism_tables(results: Results, runs: Runs) -> list[str]:
    """Return the tables; a stretch is the steps from one evaluation to the next."""
    lines: list[str] = []
    for title, explained, rows in (
        ("Do gains find the useful searches?", RANKS, list(_ranks(results, runs))),
        ("The same for gains, by turn and by hops", BY_TURN, list(_ranks_by(results, runs, "gains"))),
        ("The same for credit, by turn and by hops", "", list(_ranks_by(results, runs, "credit"))),
        ("The same for advantages, by turn and by hops", "", list(_ranks_by(results, runs, "advantages"))),
        ("Z-scores by turn", SPREAD, list(_by_depth(results, runs, "scores", "std"))),
        ("Credit by turn", CREDIT, list(_by_depth(results, runs, "credit", "mean"))),
        ("Sums of z-scores", SUMS + _before_sums(results, runs), list(_sums(results, runs))),
        ("Clip scales", CLIPS, list(_clips(results, runs))),
    ):
        if len(rows) > 1:
            lines += [f"## {title}", "", *([explained, ""] if explained else []), *table(rows[0], rows[1:]), ""]
    return lines


RANKS = (
    "The chance that a useful search has a larger number than a useless one (AUC; 0.5 is a coin toss), over the "
    "rollouts that were recorded (all of up to four batches in each stretch), for each number that the method "
    "computes. Credit is what an advantage has beyond that of the outcome. A search is useful if it returned a "
    "document that was still needed. Chances are those of each stretch, weighted by its pairs of a useful and a "
    "useless search: most useless ones are in the first stretches."
)
BY_TURN = (
    "Over questions of all lengths: late useless turns are mostly from rollouts that had already found the answer. "
    "Stretches have the same weights for all hops. Turns that some seed has no pair for are left out."
)
SPREAD = (
    "Standard deviation of z-scores at each depth. The z-scores of a turn group without a difference, or with one "
    "turn, are 0."
)
CREDIT = "Mean credit at each depth: what a turn gets for being early or late, whatever it did."
SUMS = (
    "Variance of the sum of a rollout's last n z-scores divided by the root of n, mean variance of its terms, and "
    "mean covariance of two terms (sigma^2 and delta in the paper's Proposition 2)."
)
CLIPS = (
    "Quantiles over tool turns, and the share of a turn's tokens whose gradient the clip range takes away, averaged "
    "over turns (with a ratio per turn it is all or none)."
)


def _ranks(results: Results, runs: Runs) -> Iterator[list[Any]]:
    moments = {"first stretch": first, "last stretch": last}
    others = {"scores": "z-score", "credit": "credit", "advantages": "advantage", "clip_scale": "clip scale"}
    yield ["cell", "gain", *(f"gain, {moment}" for moment in moments), *others.values()]
    for cell, of_cell in runs.items():
        over_time = [over_runs(results, of_cell, f"{AUC}gains", point) for point in moments.values()]
        found = [auc_over_runs(results, of_cell, "gains"), *over_time]
        for name in others:
            throughout = measured_throughout(results, of_cell, name)
            found.append(auc_over_runs(results, of_cell, name) if throughout else None)
        if _ranks_any(found):
            yield [cell, *(one or "" for one in found)]


def _ranks_any(chances: Iterable[Estimate | None]) -> bool:
    """Whether one of them is not 1/2 in all seeds, as for a number that a method gives to all turns."""
    return any(chance is not None and {chance.low, chance.high} != {0.5} for chance in chances)


def _ranks_by(results: Results, runs: Runs, name: str) -> Iterator[list[Any]]:
    beginning = AUC + name
    metrics = sorted(
        name for name in results.table["metric"].unique() if name.startswith(beginning) and name != beginning
    )
    parts = [
        metric.removeprefix(beginning)
        for metric in metrics
        if any(of_all(results, of_cell, metric) for of_cell in runs.values())
    ]
    yield ["cell", *(part[1:].replace("_", " ") for part in parts)]
    for cell, of_cell in runs.items():
        found = [
            auc_over_runs(results, of_cell, name, part) if of_all(results, of_cell, beginning + part) else None
            for part in parts
        ]
        if _ranks_any(found) and measured_throughout(results, of_cell, name):
            yield [cell, *(one or "" for one in found)]


def _by_depth(results: Results, runs: Runs, name: str, of: str) -> Iterator[list[Any]]:
    """A row for each cell, with the depths that all of its runs reach."""
    found = {cell: _depths(results, of_cell, name, of) for cell, of_cell in runs.items()}
    places = sorted({place for by_place in found.values() for place in by_place})
    yield ["cell", *(f"turn {place}" for place in places)]
    for cell, by_place in found.items():
        if any(one.mean for one in by_place.values()):
            yield [cell, *(by_place.get(place, "") for place in places)]


def _depths(results: Results, runs: Sequence[Run], name: str, of: str) -> dict[int, Estimate]:
    if not measured_throughout(results, runs, name):
        return {}
    of_runs = [by_depth(results, run, name, of) for run in runs]
    shared = set.intersection(*map(set, of_runs)) if of_runs else set()
    return {place: over_seeds([depths[place] for depths in of_runs]) for place in shared}


def _sums(results: Results, runs: Runs) -> Iterator[list[Any]]:
    yield ["cell", "n", "variance", "of a term", "covariance", "sums per measurement"]
    for cell, of_cell in runs.items():
        for terms in range(2, LOGGED_TURNS + 1):
            number, *variances = (
                over_runs(results, of_cell, f"sums/{name}_of_{terms}")
                for name in ("number", "variance", "term_variance", "term_covariance")
            )
            if number is not None and number.mean >= FEWEST_SUMS:
                yield [cell, terms, *variances, f"{number.mean:.0f}"]


def _before_sums(results: Results, runs: Runs) -> str:
    """Name the cells whose runs are of a version that did not measure sums: their rows would be missing silently."""
    cells = [
        cell
        for cell, of_cell in runs.items()
        if any(number > 1 for run in of_cell for _, number in results.curve(run, "by_turn/scores/number_turn_2"))
        and not any(results.curve(run, "sums/number_of_2") for run in of_cell)
    ]
    return f" Not measured in the runs of {', '.join(cells)}, which are older." if cells else ""


def _clips(results: Results, runs: Runs) -> Iterator[list[Any]]:
    yield ["cell", *(f"{percent} %" for percent in QUANTILES), "clipped", "first stretch", "last stretch"]
    for cell, of_cell in runs.items():
        clipped = over_runs(results, of_cell, "clip_fraction/mean")
        scales = [over_runs(results, of_cell, f"clip_scale/quantile_{percent}") for percent in QUANTILES]
        if clipped is not None:
            over_time = [over_runs(results, of_cell, "clip_fraction/mean", point) for point in (first, last)]
            yield [cell, *(scale or "" for scale in scales), clipped, *over_time]


def cost_table(baseline: Callable[[str], str | None], results: Results, runs: Runs) -> list[str]:
    """Return a table of seconds a step by use; empty if runs were made in parallel, because those share cores."""
    if any(json.loads(made).get("jobs") != 1 for made in results.table["made"].unique()):
        return []
    rows = []
    for cell, of_cell in runs.items():
        spent = {name: over_runs(results, of_cell, name) for name in (STEP, *SPENT)}
        seconds = {name: 0.0 if one is None else one.mean for name, one in spent.items()}
        rest = seconds[STEP] - sum(seconds[name] for name in SPENT)
        other = baseline(cell)
        ratios = _ratios(results, of_cell, runs.get(other, [])) if other else None
        shares = [f"{seconds[name] / seconds[STEP]:.0%}" for name in SPENT] if seconds[STEP] else []
        if shares:
            ratio = "" if ratios is None else f"{ratios} (of {other})"
            rows.append([cell, spent[STEP], ratio, *shares, f"{rest / seconds[STEP]:.0%}"])
    head = [
        "cell",
        "seconds per step",
        "relative to another cell",
        "sampling",
        "tools",
        "gain",
        "training and the rest",
    ]
    return ["## Cost", "", *table(head, rows), ""] if rows else []


def _ratios(results: Results, runs: Sequence[Run], others: Sequence[Run]) -> Estimate | None:
    """Seconds a step divided by those of another cell, seed by seed."""
    seconds, of_others = (
        {run.seed: found.mean for run in cell if (found := over_runs(results, [run], STEP)) is not None}
        for cell in (runs, others)
    )
    ratios = [value / other for value, other in paired(seconds, of_others)]
    return over_seeds(ratios) if ratios else None
