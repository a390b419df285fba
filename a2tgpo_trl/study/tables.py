"""results of a study -> the tables of its report on what gains and credit are worth, and how they are spread.

A cell's number is the mean over its seeds of the mean over each run's measurements; for an AUC, these are weighted by
their numbers of pairs.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean
from typing import Any

from ..report.scores import Estimate
from ..report.seeds import over_seeds
from ..report.series import Curve
from ..turns import LOGGED_TURNS
from .comparison import Runs, paired
from .results import SPENT, Results
from .spreads import QUANTILES
from .study import Run


Point = Callable[[Curve, int], float | None]  # a run's curve and last step -> a number, or None

AUC = "useful/auc/"
TURN = "_turn_"
STEP = "step_time"
FEWEST_SUMS = 8  # average number of sums per measurement that a variance needs


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def mean(curve: Curve, end: int) -> float:
    return fmean(value for _, value in curve)


def first(curve: Curve, end: int) -> float:
    return curve[0][1]


def last(curve: Curve, end: int) -> float | None:
    """The value at the end of the run; None if it was last measured before that."""
    return curve[-1][1] if curve[-1][0] == end else None


def over_runs(results: Results, runs: Iterable[Run], metric: str, point: Point = mean) -> Estimate | None:
    """Return, over seeds, a point of each run's curve; None if no run has it."""
    points = [point(curve, results.end(run)) for run in runs if (curve := results.curve(run, metric))]
    found = [value for value in points if value is not None]
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


def mechanism_tables(results: Results, runs: Runs) -> list[str]:
    """Return the tables; a stretch is the steps from one evaluation to the next."""
    lines: list[str] = []
    for title, explained, rows in (
        ("Do gains find the useful searches?", RANKS, list(_ranks(results, runs))),
        ("The same for gains, by turn and by hops", BY_TURN, list(_ranks_by(results, runs, "gains"))),
        ("The same for credit, by turn and by hops", "", list(_ranks_by(results, runs, "credit"))),
        ("Z-scores by turn", SPREAD, list(_by_depth(results, runs))),
        ("Sums of z-scores", SUMS + _before_sums(results, runs), list(_sums(results, runs))),
        ("Clip scales", CLIPS, list(_clips(results, runs))),
    ):
        if len(rows) > 1:
            lines += [f"## {title}", "", *([explained, ""] if explained else []), *table(rows[0], rows[1:]), ""]
    return lines


RANKS = (
    "The chance that a useful search has a larger number than a useless one (AUC; 0.5 is a coin toss), over the "
    "rollouts that were trained on, for each number that the method computes. A search is useful if it returned a "
    "document that was still needed. Chances are those of each stretch, weighted by its pairs of a useful and a "
    "useless search: most useless ones are in the first stretches."
)
BY_TURN = (
    "Over questions of all lengths: late useless turns are mostly from rollouts that had already found the answer."
)
SPREAD = (
    "Standard deviation of z-scores at each depth. The z-scores of a turn group without a difference, or with one "
    "turn, are 0."
)
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
    yield ["cell", "gain", *(f"gain, {moment}" for moment in moments), "z-score", "credit", "clip scale"]
    for cell, of_cell in runs.items():
        gains = auc_over_runs(results, of_cell, "gains")
        if gains is not None:
            over_time = [over_runs(results, of_cell, f"{AUC}gains", point) or "" for point in moments.values()]
            others = [
                auc_over_runs(results, of_cell, name) if measured_throughout(results, of_cell, name) else None
                for name in ("scores", "credit", "clip_scale")
            ]
            yield [cell, gains, *over_time, *(other or "" for other in others)]


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
        found = [auc_over_runs(results, of_cell, name, part) for part in parts]
        if any(found) and measured_throughout(results, of_cell, name):
            yield [cell, *(one or "" for one in found)]


def measured_throughout(results: Results, runs: Sequence[Run], name: str) -> bool:
    """Whether every batch of all runs has this number of turns.

    If a method credits answer turns, only batches in which it happens not to have a `credit` (`mechanism.py`). Those
    are too few and too special to tell anything.
    """
    pairs = [
        [results.curve(run, metric) for metric in (f"by_turn/{name}/number_turn_1", "useful/share_turn_1")]
        for run in runs
    ]
    return all(len(numbers) >= len(shares) > 0 for numbers, shares in pairs)


def of_all(results: Results, runs: Sequence[Run], metric: str) -> bool:
    """Whether every run of a cell has the metric; numbers of turns that few rollouts reach are chance."""
    return bool(runs) and all(results.curve(run, metric) for run in runs)


def _by_depth(results: Results, runs: Runs) -> Iterator[list[Any]]:
    names = [f"by_turn/scores/std_turn_{place}" for place in range(1, LOGGED_TURNS + 1)]
    kept = [name for name in names if any(of_all(results, of_cell, name) for of_cell in runs.values())]
    yield ["cell", *(name.removeprefix("by_turn/scores/std_").replace("_", " ") for name in kept)]
    yield from _means(results, runs, kept)


def _means(results: Results, runs: Runs, metrics: Sequence[str]) -> Iterator[list[Any]]:
    """A row for each cell that has one of these metrics."""
    for cell, of_cell in runs.items():
        found = [over_runs(results, of_cell, metric) for metric in metrics]
        if any(found):
            yield [cell, *(one or "" for one in found)]


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
