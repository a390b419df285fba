"""results of a study -> figures 1, 3, 4, 5, 8 and 10 of the A2TGPO paper, and its numbers beside ours."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..report.looks import look, save
from ..report.scores import Estimate
from ..report.seeds import over_seeds
from ..report.series import mean_curve as over_steps
from ..rewards import RIGHT_OR_WRONG
from ..turns import LOGGED_TURNS
from .averages import Point, by_depth, first, last, mean, over_runs
from .comparison import Runs
from .results import HELD_OUT, Results
from .study import Run
from .tables import table


# Cells of the methods that the paper compares: A2TGPO with the paper's clip range and with ten times that, and others.
A2TGPO, OTHERS = ("a2tgpo", "a2tgpo_wide"), ("grpo", "igpo")
STAGES = {"gains": "gain", "scores": "normalised", "credit": "accumulated"}


def compared(runs: Runs) -> Runs:
    """Return the cells of the paper's methods, with the first of A2TGPO's; if there are none, the first three."""
    of_paper = [*OTHERS, *[name for name in A2TGPO if name in runs][:1]]
    names = [name for name in of_paper if name in runs] or list(runs)[:3]
    return {name: runs[name] for name in names}


# ---- its numbers beside ours


def numbers(results: Results, runs: Runs) -> list[str]:
    cells = compared(runs)
    rows = [
        [figure, what, paper, *(of_cell(results, of_runs) for of_runs in cells.values())]
        for figure, what, paper, of_cell in _numbers()
    ]
    told = [row for row in rows if any(row[3:])]
    if not told:
        return []
    return ["## The paper's figures", "", *table(["figure", "", "in the paper", *cells], told), ""]


Number = Callable[[Results, Sequence[Run]], Any]


def _numbers() -> Iterator[tuple[str, str, str, Number]]:
    """Figure of the paper, quantity, value in the paper (Qwen3-4B, multi-hop questions), and how to compute ours."""
    at_the_end = "after training"
    yield "1", f"similarity of calls at the same depth, {at_the_end}", "0.62", _of("similarity/same_depth", last)
    yield "1", f"similarity of calls across depths, {at_the_end}", "0.38", _of("similarity/across_depths", last)
    yield "3", "entropy, first stretch", "", _of("entropy", first)
    yield "3", "entropy, last stretch", "GRPO's collapses, A2TGPO's does not", _of("entropy", last)
    papers = {"gains": "1.30", "scores": "IGPO 1.54, A2TGPO 0.00", "credit": "IGPO 1.03, A2TGPO 0.00"}
    for name, stage in STAGES.items():
        yield "4", f"largest difference between depths, {stage}", papers[name], _drift(name)
    yield "5", "smallest advantage", "IGPO's is the widest range", _of("advantages/smallest")
    yield "5", "largest advantage", "", _of("advantages/largest")
    yield "8", "tokens of the longest rollout, first stretch", "6,000", _of("completions/max_length", first)
    yield "8", "tokens of the longest rollout, last stretch", "A2TGPO 4,000", _of("completions/max_length", last)
    yield "10", "calls per rollout, last stretch", "A2TGPO 3.45", _of("tools/call_frequency", last)
    yield "10", "rollouts without a call", "A2TGPO 2.5 %", _of("calls/share_of_0")


def _of(metric: str, point: Point = mean) -> Number:
    return lambda results, runs: over_runs(results, runs, metric, point) or ""


def _drift(name: str) -> Number:
    return lambda results, runs: drift(results, runs, name) or ""


def drift(results: Results, runs: Sequence[Run], name: str) -> Estimate | None:
    """Return, over seeds, the largest difference between the means of two depths."""
    depths = [by_depth(results, run, name, "mean").values() for run in runs]
    found = [float(max(means) - min(means)) for means in depths if len(means) > 1]
    return over_seeds(found) if found else None


# ---- the picture


def draw_figures(results: Results, runs: Runs, reward: str, file: Path) -> None:
    """Draw six panels of means over seeds, by step or by turn."""
    cells = compared(runs)
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    panels = figure.subplots(2, 3).flat
    _similarity(next(panels), results, cells)
    _entropy(next(panels), results, cells, reward)
    _stages(next(panels), results, cells)
    _envelope(
        next(panels), results, cells, "5: advantages", "advantages/smallest", "advantages/mean", "advantages/largest"
    )
    lengths = [f"completions/{which}_length" for which in ("min", "mean", "max")]
    _envelope(next(panels), results, cells, "8: tokens per rollout", *lengths)
    _calls(next(panels), results, cells)
    figure.suptitle(f"Figures of the paper, from this study's runs (held-out {reward.replace('_', ' ')} in 3)")
    save(figure, file, dpi=100)


def _line(number: int, dashes: str) -> dict[str, Any]:
    """The look of a cell's line; its dashes show what is drawn."""
    of = look(number)
    return {"color": of.colour, "linestyle": dashes, "marker": of.marker, "markersize": 4}


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:  # runs without gains, or without calls, have no lines in some panels
        axes.legend(fontsize="x-small")


def _similarity(axes: Axes, results: Results, cells: Runs) -> None:
    for number, (cell, runs) in enumerate(cells.items()):
        found = {
            place: over_runs(results, runs, f"similarity/turn_{place}", last) for place in range(1, LOGGED_TURNS + 1)
        }
        heights = {place: one.mean for place, one in found.items() if one is not None}
        axes.plot(list(heights), list(heights.values()), **_line(number, "-"), label=f"{cell}, same depth")
        across = over_runs(results, runs, "similarity/across_depths", last)
        if across is not None:
            axes.axhline(across.mean, color=look(number).colour, linestyle=":", label=f"{cell}, across")
    axes.set(title="1: similarity of the calls of a prompt", xlabel="turn", ylabel="Jaccard", ylim=(0, 1))
    _legend(axes)


def _entropy(axes: Axes, results: Results, cells: Runs, reward: str) -> None:
    scores = axes.twinx()
    for number, (cell, runs) in enumerate(cells.items()):
        axes.plot(*mean_curve(results, runs, "entropy"), **_line(number, "-"), label=cell)
        scores.plot(*mean_curve(results, runs, HELD_OUT + reward), **_line(number, "--"), alpha=0.6)
    axes.set(title="3: entropy (-) and held-out score (- -)", xlabel="step", ylabel="entropy")
    if reward in RIGHT_OR_WRONG:
        scores.set_ylim(0, 1)
    _legend(axes)


def _stages(axes: Axes, results: Results, cells: Runs) -> None:
    for number, (cell, runs) in enumerate(cells.items()):
        for (name, stage), style in zip(STAGES.items(), (":", "--", "-"), strict=True):
            depths = [by_depth(results, run, name, "mean") for run in runs]
            shared = sorted(set.intersection(*map(set, depths))) if depths else []
            if shared and (name != "gains" or cell == list(cells)[-1]):
                heights = [float(np.mean([of_run[place] for of_run in depths])) for place in shared]
                axes.plot(shared, heights, **_line(number, style), label=f"{cell}, {stage}")
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(title="4: means by turn", xlabel="turn")
    _legend(axes)


def _envelope(axes: Axes, results: Results, cells: Runs, title: str, low: str, middle: str, high: str) -> None:
    for number, (cell, runs) in enumerate(cells.items()):
        for metric, style in ((low, ":"), (middle, "-"), (high, ":")):
            label = cell if metric == middle else None
            axes.plot(*mean_curve(results, runs, metric), **_line(number, style), label=label)
    axes.set(title=f"{title}: smallest, mean, largest", xlabel="step")
    _legend(axes)


def _calls(axes: Axes, results: Results, cells: Runs) -> None:
    width = 0.8 / len(cells)
    for number, (cell, runs) in enumerate(cells.items()):
        shares = [over_runs(results, runs, f"calls/share_of_{times}") for times in range(LOGGED_TURNS + 1)]
        places = np.arange(len(shares)) + (number - (len(cells) - 1) / 2) * width
        heights, of = [0.0 if one is None else one.mean for one in shares], look(number)
        axes.bar(places, heights, width, color=of.colour, hatch=of.hatch, edgecolor="white", linewidth=0, label=cell)
    axes.set(title=f"10: calls per rollout ({LOGGED_TURNS}: or more)", xlabel="calls", ylabel="share of rollouts")
    _legend(axes)


def mean_curve(results: Results, runs: Sequence[Run], metric: str) -> tuple[list[int], list[float]]:
    """Return the steps that all seeds have, and the means over seeds at these steps."""
    found = over_steps([results.curve(run, metric) for run in runs])
    return [step for step, _ in found], [one.mean for _, one in found]
