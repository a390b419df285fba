"""series of runs -> one picture: learning curves, numbers by turn, or bars of areas and final values.

Intervals are Student's over seeds, 95 %. A run alone has none over seeds. As its labels say, its held-out scores
before and after training have intervals over questions, and its numbers by turn have intervals over steps, which show
how steady the run was but nothing about another seed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..lookup import nearest
from ..rewards import RIGHT_OR_WRONG
from .looks import check_suffix, draw_curve, look, plain, save
from .scores import Estimate
from .seeds import over_seeds, weighted
from .series import HELD_OUT, Curve, Run, Series, area, read_series, smooth


CURVE = "learning_curve.png"
SHARES = {f"rewards/{name}/mean": name.replace("_", " ") for name in RIGHT_OR_WRONG}
TITLES = {
    **SHARES,
    **{"reward": "reward", "turns/mean": "turns per rollout", "gain/mean": "gain per turn"},
}
IN_A_ROW = 4  # panels
SOME = "Some runs of"  # begins a sentence on a series some of whose runs lack a metric
SURVIVORS = "turns/survivors_turn_{}"  # the weight of a step in numbers by turn


def plot_runs(runs: Mapping[str, Path], file: Path, scored: str = "held out") -> None:
    """Draw learning curves of runs, each by itself: its course in training, and scores with their intervals.

    `scored`: what kind of questions the scores are on.
    """
    found = [Series(name, one.runs) for name, folder in runs.items() for one in read_series([folder])]
    plot_curves(found, file, scored=scored)


# ---- learning curves


def plot_curves(
    series: Sequence[Series], file: Path, metrics: Sequence[str] | None = None, scored: str = "held out"
) -> list[str]:
    """Draw a panel for each metric; without a choice, for each of the usual metrics that any run has.

    Returns sentences that say what is missing from the picture.
    """
    check_suffix(file)
    found, missing = _chosen(series, metrics or _usual(series))
    figure = _panels(len(found))
    for axes, metric in zip(figure.axes, found, strict=True):
        held_out = _beside(metric) if _are_alone(series) else None
        for number, one in enumerate(series):
            _course(axes, one, metric, number, len(series))
        for number, one in enumerate(series):
            if held_out is not None:
                _points(axes, one, held_out, number, len(series), f"{one.name}, {scored}")
        training = metric in SHARES and not _are_alone(series)
        _finish(axes, f"{_title(metric, scored)}{', training' if training else ''}", "step", _is_share(metric))
    _legend(figure)
    save(figure, file)
    return missing if metrics else [line for line in missing if line.startswith(SOME)]


def _usual(series: Sequence[Series]) -> list[str]:
    """The usual metrics. Runs alone show held-out scores in the panel of the training reward, others beside it."""
    has = _metrics_of(series)
    shares = [metric for metric in SHARES if metric in has]
    held_out = [] if _are_alone(series) else [metric for name in RIGHT_OR_WRONG if (metric := HELD_OUT + name) in has]
    others = [metric for metric in TITLES if metric in has and metric not in SHARES]
    # The reward is drawn only if there is no share of right answers.
    kept = [metric for metric in others if metric != "reward" or not (shares or held_out)]
    return [*held_out, *shares, *kept]


def _are_alone(series: Sequence[Series]) -> bool:
    return all(one.is_alone for one in series)


def _beside(metric: str) -> str | None:
    """The held-out score of a training reward. Example: rewards/f1/mean -> held_out/f1"""
    parts = metric.split("/")
    return HELD_OUT + parts[1] if parts[0] == "rewards" and parts[-1] == "mean" and len(parts) == 3 else None


def _course(axes: Axes, one: Series, metric: str, number: int, of_all: int) -> None:
    if not one.has(metric):
        return
    if metric.startswith(HELD_OUT) and len(one.curve(metric)) < 3:  # only before and after training
        _points(axes, one, metric, number, of_all, one.label)
        return
    is_training = not metric.startswith(HELD_OUT)
    if one.is_alone and is_training:
        raw = one.runs[0].curves[metric]
        axes.plot(*zip(*raw, strict=True), color=look(number).colour, alpha=0.25, linewidth=1)
    label = f"{one.label}, training" if one.is_alone and is_training else one.label
    draw_curve(axes, one.curve(metric), number, label, marked=not (one.is_alone and is_training))


def _points(axes: Axes, one: Series, metric: str, number: int, of_all: int, label: str) -> None:
    """Draw held-out scores with their intervals, slightly beside those of other series at the same step."""
    if not one.has(metric):
        return
    curve, of_questions = one.curve(metric), one.runs[0].scores.get(metric, {}) if one.is_alone else {}
    points = [(step, of_questions.get(step, estimate)) for step, estimate in curve]
    label += " (intervals over questions)" if of_questions else ""
    aside = (number - (of_all - 1) / 2) * 0.015 * curve[-1][0]
    of = look(number)
    axes.errorbar(
        [step + aside for step, _ in points],
        *_bounds([point for _, point in points]),
        fmt=of.marker,
        color=of.colour,
        capsize=3,
        label=plain(label),
        clip_on=False,
        zorder=3,
    )


def _bounds(points: Sequence[Estimate]) -> tuple[list[float], list[list[float]]]:
    """Means, and how far their intervals reach below and above."""
    return [one.mean for one in points], [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]


# ---- by turn


def plot_turns(series: Sequence[Series], file: Path, metrics: Sequence[str] | None = None) -> list[str]:
    """Draw a row for each metric: its mean at each turn, in the first quarter of the steps and in the last.

    Each step is weighted by the number of its rollouts that reached the turn.
    """
    check_suffix(file)
    metrics = metrics or ["gain/mean"]
    missing = []
    for metric in metrics:
        if not any(places(one, metric) for one in series):
            known = sorted({name for one in series for name in with_turns(one)})
            raise ValueError(
                f"No run has {metric} by turn.{nearest(metric, known)} There are: {', '.join(known) or 'none'}."
            )
        missing += [f"{one.name} has no {metric} by turn." for one in series if not places(one, metric)]
    figure = Figure(figsize=(8.4, 3.4 * len(metrics)), layout="constrained")
    rows = figure.subplots(len(metrics), 2, squeeze=False, sharey="row")
    for metric, row in zip(metrics, rows, strict=True):
        there = {number: one for number, one in enumerate(series) if places(one, metric)}
        for axes, (title, part) in zip(row, (("first", 0), ("last", -1)), strict=True):
            for place, (number, one) in enumerate(there.items()):
                # Side by side, so that intervals do not cover each other.
                aside = (place - (len(there) - 1) / 2) * min(0.08, 0.5 / len(there))
                _at_turns(axes, one, metric, number, part, aside)
            _finish(axes, f"{_title(metric)}, {title} quarter of steps", "turn")
    _legend(figure)
    save(figure, file)
    return missing


def _at_turns(axes: Axes, one: Series, metric: str, number: int, part: int, aside: float) -> None:
    points = [(place, _at_turn(one, metric, place, part)) for place in places(one, metric)]
    of = look(number)
    axes.errorbar(
        [place + aside for place, _ in points],
        *_bounds([point for _, point in points]),
        fmt=of.marker,
        linestyle=of.dashes,
        color=of.colour,
        markersize=4.5,
        capsize=2,
        label=plain(f"{one.name} (intervals over steps)" if one.is_alone else one.label),
    )


def by_turn(metric: str) -> list[str]:
    """The names that a metric's numbers by turn may have, with {} for the turn.

    Example: gain/mean -> gain/turn_{}/mean; clip_scale/mean -> clip_scale/turn_{}; value/after -> value/after_turn_{}
    """
    begin, _, end = metric.rpartition("/")
    return [f"{begin}/turn_{{}}/{end}", *([f"{begin}/turn_{{}}"] if end == "mean" else []), f"{metric}_turn_{{}}"]


def with_turns(one: Series) -> set[str]:
    """The metrics that a series has by turn."""
    found = set()
    for metric in one.metrics:
        parts = re.fullmatch(r"(.*?)([/_])turn_\d+(/.*)?", metric)
        if parts:
            begin, mark, end = parts.groups()
            found.add(f"{begin}{end or ('/mean' if mark == '/' else '')}")
    return found


def places(one: Series, metric: str) -> list[int]:
    """The turns, counted from 1, at which every run of a series has the metric."""
    known = {int(number) for name in one.metrics for number in re.findall(r"turn_(\d+)", name)}
    return [place for place in sorted(known) if _name_at(one.runs, metric, place) is not None]


def _name_at(runs: Sequence[Run], metric: str, place: int) -> str | None:
    names = [name.format(place) for name in by_turn(metric)]
    return next((name for name in names if all(run.curves.get(name) for run in runs)), None)


def _at_turn(one: Series, metric: str, place: int, part: int) -> Estimate:
    """The mean over the first or last quarter of the steps that have the metric; over seeds if there are several."""
    means = [_mean_at_turn(run, metric, place, part) for run in one.runs]
    return means[0] if one.is_alone else over_seeds([mean.mean for mean in means])


def _mean_at_turn(run: Run, metric: str, place: int, part: int) -> Estimate:
    name = _name_at([run], metric, place)
    assert name is not None
    curve, survivors = run.curves[name], dict(run.curves.get(SURVIVORS.format(place), ()))
    number = -(-len(curve) // 4)
    stretch = curve[:number] if part == 0 else curve[-number:]
    return weighted([value for _, value in stretch], [survivors.get(step, 1.0) for step, _ in stretch])


# ---- bars


def plot_bars(series: Sequence[Series], file: Path, metrics: Sequence[str] | None = None) -> list[str]:
    """Draw a row for each metric: the area under its curve, which is its mean height, and its last value.

    Without a choice, the metric is the held-out share of right answers.
    """
    check_suffix(file)
    metrics, missing = _chosen(series, metrics or [_held_out_share(series)])
    figure = Figure(figsize=(9.6, 1.1 + (0.5 + 0.34 * len(series)) * len(metrics)), layout="constrained")
    rows = figure.subplots(len(metrics), 2, squeeze=False, sharey="row")
    for metric, row in zip(metrics, rows, strict=True):
        there = {number: one for number, one in enumerate(series) if one.has(metric)}
        missing += _uneven(list(there.values()), metric)
        for axes, (what, point) in zip(row, (("area", area), ("at the end", _end)), strict=True):
            _bars(axes, there, metric, point)
            axes.set_title(f"{_title(metric)}: {what}", fontsize="medium")
        row[0].invert_yaxis()  # the first on top; the other panel shares it
    if not _are_alone(series):
        figure.supxlabel("means, with 95 % intervals over seeds", fontsize="small")
    save(figure, file)
    return missing


def _held_out_share(series: Sequence[Series]) -> str:
    known = {metric for metric in _metrics_of(series) if metric.startswith(HELD_OUT)}
    found = next((metric for name in RIGHT_OR_WRONG if (metric := HELD_OUT + name) in known), None)
    if found is None:
        raise ValueError(
            "Bars show the held-out share of right answers, which no run has. Name what to show instead: --metric "
            f"{next(iter(sorted(known)), 'reward')}"
        )
    return found


def _over(one: Series, metric: str, point: Callable[[Curve], float]) -> Estimate:
    window = 1 if metric.startswith(HELD_OUT) else one.window
    return over_seeds([point(smooth(run.curves[metric], window)) for run in one.runs])


def _uneven(series: Sequence[Series], metric: str) -> list[str]:
    """Sentences on what makes areas hard to compare."""
    found = []
    if any(len(run.curves[metric]) == 2 for one in series for run in one.runs):
        found.append(f"The area of {metric} is of only two scores: for more, train with --eval_strategy steps.")
    ends = {run.curves[metric][-1][0] for one in series for run in one.runs}
    if len(ends) > 1:
        found.append(f"Curves of {metric} end at different steps: {', '.join(map(str, sorted(ends)))}.")
    return found


def _end(curve: Curve) -> float:
    return curve[-1][1]


def _bars(axes: Axes, series: Mapping[int, Series], metric: str, point: Callable[[Curve], float]) -> None:
    """`series`: those that have the metric, by the number that sets their look."""
    for place, (number, one) in enumerate(series.items()):
        of, found = look(number), _over(one, metric, point)
        axes.barh(
            place,
            found.mean,
            0.72,
            xerr=None if one.is_alone else _bounds([found])[1],
            color=of.colour,
            hatch=of.hatch,
            edgecolor="white",
            error_kw={"ecolor": "black", "capsize": 3, "elinewidth": 1.2},
        )
        axes.text(
            0.99,
            place,
            f"{found.mean:.3f}",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize="small",
            bbox={"facecolor": "white", "linewidth": 0, "pad": 1.5},  # drawn over intervals that reach this far
        )
    axes.set_yticks(range(len(series)), [plain(one.label) for one in series.values()])
    axes.margins(x=0.2)
    if _is_share(metric):  # with few seeds, intervals reach beyond possible shares
        axes.set_xlim(0, 1.15)
    axes.spines[["top", "right"]].set_visible(False)


# ---- shared by all pictures


def _metrics_of(series: Sequence[Series]) -> set[str]:
    """The metrics by which some series can be drawn."""
    return {metric for one in series for metric in one.metrics if one.has(metric)}


def _lacks(series: Sequence[Series], metric: str) -> list[str]:
    """A sentence for each series that lacks the metric."""
    lacking = [one for one in series if not one.has(metric)]
    return [
        f"{SOME} {one.name} have no {metric}, so it is left out."
        if metric in one.partial
        else f"{one.name} has no {metric}."
        for one in lacking
    ]


def _chosen(series: Sequence[Series], metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    """Check that some series has each metric; return them, and a sentence for each series that lacks one."""
    known = sorted(_metrics_of(series))
    if not metrics:
        raise ValueError(f"The runs have none of the usual metrics. Name another: --metric {' '.join(known[:3])}")
    for metric in metrics:
        if metric not in known:
            begun = [name for name in known if name.startswith(metric.split("/")[0])]
            there = f" There are: {', '.join(begun)}." if begun else ""
            raise ValueError(
                f"No run has the metric {metric!r}.{nearest(metric, known)}{there} `a2tgpo help metrics` says what "
                f"is logged; held-out scores are {HELD_OUT}NAME."
            )
    return list(metrics), [line for metric in metrics for line in _lacks(series, metric)]


def _panels(number: int) -> Figure:
    columns = min(number, IN_A_ROW)
    rows = -(-number // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    for place in range(number):
        figure.add_subplot(rows, columns, place + 1)
    return figure


def _title(metric: str, scored: str = "held out") -> str:
    if metric.startswith(HELD_OUT):
        return f"{metric.removeprefix(HELD_OUT).replace('_', ' ')}, {scored}"
    return TITLES.get(metric, plain(metric))


def _is_share(metric: str) -> bool:
    return metric in SHARES or metric.removeprefix(HELD_OUT) in RIGHT_OR_WRONG


def _finish(axes: Axes, title: str, along: str, is_share: bool = False) -> None:
    if is_share:
        axes.set_ylim(0, 1)
    axes.set(xlabel=along, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure) -> None:
    """Put a legend in the first panel with labels; series not in it are named in the next panel that has them."""
    told: set[str] = set()
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        new = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label not in told]
        if new:
            axes.legend(*zip(*new, strict=True), frameon=False, fontsize="small")
            told |= {label for _, label in new}
