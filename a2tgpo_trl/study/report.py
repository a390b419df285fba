"""results of a study -> its report in Markdown, and its learning curves in one picture. Nothing is typed by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from ..report.looks import draw_curve, draw_interval, plain, save
from ..report.seeds import over_seeds
from ..report.series import Run as Measured
from ..report.series import Series, area, mean_curve
from ..rewards import RIGHT_OR_WRONG
from .averages import last, over_runs
from .calls import calls_table
from .claims import claimed_better, claims
from .comparison import Difference, Outcomes, Pair, Runs, best_rates, differences, outcomes_of, tried_areas
from .courses import courses_tables
from .figures import numbers
from .results import HELD_OUT, Results
from .study import Run, Study, read_study
from .tables import cost_table, mechanism_tables, table


EXPLAINED = (
    "Intervals are over seeds, which all answer the same held-out questions once; each interval is for one number "
    "alone. p is Student's, for the paired areas, corrected by Holm's rule for all differences that this report "
    "judges (those in this table and the claims below that one cell is better than another). Better or worse means "
    "that p is below 0.05 over at least five seeds. Post hoc means that the cell was added after results of others "
    "had been seen."
)


FEW = 4  # cells whose bands can be told apart in one picture


def report(study: Study, results: Results) -> str:
    """Return the report on the results so far."""
    runs = runs_by_cell(study, results)
    lines = [
        title(study),
        "",
        f"Made by `a2tgpo study {study.file.name}` from `{study.results.name}`. The area is the mean score over "
        f"training, evaluated every {study.every} steps; steps to the target lie on straight lines between "
        "evaluations. Steps of cells that roll prompts out again (resample_limit) cost more than others. Numbers are "
        f"means over seeds with 95 % intervals (Student's t). Differences are taken seed by seed. {EXPLAINED}",
        "",
        *_stale(study, results),
        *_untried(study, results),
    ]
    outcomes = outcomes_of(study, results, runs)
    found = _judged(study, outcomes)
    lines += [*_main_table(study, outcomes, found), "", f"![learning curves]({study.picture.name})", ""]
    lines += _further_table(study, found)
    lines += _claims_table(results, runs, found)
    lines += _rates_table(study, results)
    lines += courses_tables(results, runs, found, HELD_OUT + study.reward)
    lines += _groups_table(study, results, runs)
    lines += _metrics_table(results, runs)
    lines += calls_table(results, runs)
    lines += mechanism_tables(results, runs)
    lines += _figures(study, results, runs)
    lines += cost_table(study.baseline, results, runs)
    lines += _made_by(results, runs)
    return "\n".join(lines)


def summary(study: Study, results: Results) -> Table:
    """Return a table for a terminal with a line for each cell."""
    outcomes = outcomes_of(study, results, runs_by_cell(study, results))
    found = _judged(study, outcomes)
    shown = Table(title=title(study).removeprefix("# "), title_justify="left", title_style="bold")
    for column in ("cell", "seeds", "area", "area, less that of", ""):
        shown.add_column(column, overflow="fold")
    for cell, by_seed in outcomes.items():
        areas = over_seeds([one.area for one in by_seed.values()])
        other, less, _, _, verdict = map(str, _compared(study, cell, found))
        shown.add_row(cell, str(len(by_seed)), str(areas), f"{other}: {less}" if other else "", verdict)
    return shown


def _judged(study: Study, outcomes: Outcomes) -> dict[Pair, Difference]:
    """All differences that the report judges: the pairs that the study compares, and those claimed to be better."""
    compared = [(cell, other) for cell in outcomes for other in study.baselines(cell)]
    return differences(outcomes, dict.fromkeys([*compared, *claimed_better(outcomes)]))


def title(study: Study) -> str:
    return f"# {study.file.stem}: held-out {study.reward.replace('_', ' ')}"


def _stale(study: Study, results: Results) -> list[str]:
    """The cells some of whose runs are left out, and why."""
    changed = [cell for cell in results.stale if cell in study.cells]
    gone = [cell for cell in results.stale if cell not in study.cells]
    lines = []
    if changed:
        cells = ", ".join(changed)
        lines += [f"Some runs of {cells} have other settings or are of another version. They are left out here.", ""]
    if gone:
        lines += [f"Runs of {', '.join(gone)} are left out here: {study.file.name} has no such cell now.", ""]
    return lines


def _untried(study: Study, results: Results) -> list[str]:
    """The cells with runs, but without a learning rate, because some of its trials are missing."""
    there, rates = {*results.table["cell"].unique()}, best_rates(study, results)
    cells = [cell for cell in study.cells if cell in there and cell not in rates]
    if not cells:
        return []
    return [f"{', '.join(cells)}: left out here, because trials of learning rates are missing or have failed.", ""]


def runs_by_cell(study: Study, results: Results) -> Runs:
    """Return the reported runs that exist, by cell."""
    found: dict[str, list[Run]] = {}
    for run in study.reported(best_rates(study, results)):
        if results.curve(run, HELD_OUT + study.reward):
            found.setdefault(run.cell, []).append(run)
    return {cell: found[cell] for cell in study.cells if cell in found}


def _main_table(study: Study, outcomes: Outcomes, found: Mapping[Pair, Difference]) -> list[str]:
    goal = f"{study.target:g}"
    head = ["cell", "seeds", "area", "at the end", f"steps to {goal} (median; seeds that reached it)"]
    head += [f"million tokens to {goal} (median)", "compared with", "area, less its", "at the end, less its", "p", ""]
    rows = []
    for cell, by_seed in outcomes.items():
        there = list(by_seed.values())
        reached = sum(one.steps is not None for one in there)
        rows.append(
            [
                cell,
                len(there),
                over_seeds([one.area for one in there]),
                over_seeds([one.end for one in there]),
                f"{_median([one.steps for one in there], '.0f')} ({reached} of {len(there)})",
                _median([None if one.tokens is None else one.tokens / 1e6 for one in there], ".2f"),
                *_compared(study, cell, found),
            ]
        )
    return table(head, rows)


def _compared(study: Study, cell: str, found: Mapping[Pair, Difference]) -> list[object]:
    other = study.baseline(cell)
    if other is None or (cell, other) not in found:
        return [""] * 5
    return [other, *_entries(study, (cell, other), found)]


def _entries(study: Study, pair: Pair, found: Mapping[Pair, Difference]) -> list[object]:
    difference = found[pair]
    verdict = f"{difference.verdict} (post hoc)" if {*pair} & {*study.post_hoc} else difference.verdict
    return [difference.area, difference.end, f"{difference.p:.3f}", verdict]


def _further_table(study: Study, found: Mapping[Pair, Difference]) -> list[str]:
    """The judged differences that are not in the main table."""
    shown = {frozenset((cell, other)) for cell, other in found if study.baseline(cell) == other}
    rows = [[*pair, *_entries(study, pair, found)] for pair in found if frozenset(pair) not in shown]
    head = ["cell", "compared with", "area, less its", "at the end, less its", "p", ""]
    return ["## Further comparisons", "", *table(head, rows), ""] if rows else []


def _median(numbers: Sequence[float | None], form: str) -> str:
    """The median; None counts as more than any number. Example: 62, 90 and None -> "90"; 62, None and None -> "-" """
    median = float(np.median([np.inf if number is None else number for number in numbers]))
    return format(median, form) if np.isfinite(median) else "-"


def _claims_table(results: Results, runs: Runs, found: Mapping[Pair, Difference]) -> list[str]:
    rows = list(claims(results, runs, found))
    return ["## The paper's claims", "", *table(["claim", "found here", ""], rows), ""] if rows else []


def _rates_table(study: Study, results: Results) -> list[str]:
    if study.learning_rates is None:
        return []
    values, seeds = study.learning_rates.values, study.learning_rates.seeds
    chosen = best_rates(study, results)
    rows = []
    for cell in study.cells:
        areas = tried_areas(study, results, cell)
        if all(area is None for area in areas.values()):
            continue
        best = chosen.get(cell)
        marked = [
            "" if areas[rate] is None else f"**{areas[rate]:.3f}**" if rate == best else f"{areas[rate]:.3f}"
            for rate in values
        ]
        rows.append([cell, *marked])
    head = ["cell", *(f"{rate:g}" for rate in values)]
    named = ", ".join(map(str, seeds))
    title = (
        f"## Learning rates\n\nMean areas on seeds that are not reported elsewhere ({named}), on the same held-out "
        "questions."
    )
    return [title, "", *table(head, rows), ""] if rows else []


def _groups_table(study: Study, results: Results, runs: Runs) -> list[str]:
    """Final scores on groups of the questions."""
    beginning = f"{HELD_OUT}{study.reward}/"
    names = sorted({name for name in results.table["metric"].unique() if name.startswith(beginning)})
    if not names or not runs:
        return []
    rows = [
        [cell, *(over_runs(results, of_cell, name, last) or "" for name in names)] for cell, of_cell in runs.items()
    ]
    return ["## By question, at the end", "", *table(["cell", *(n.removeprefix(beginning) for n in names)], rows), ""]


SHOWN = {  # metric -> its heading
    f"{HELD_OUT}tool calls": "calls per question",
    f"{HELD_OUT}useful/share_turn_1": "useful first searches",
    f"{HELD_OUT}useful/auc/gains": "AUC of the gain",
    "clip_fraction/mean": "clipped",
    "groups/teach_nothing": "groups that teach nothing",
    "entropy": "entropy",
}


def _metrics_table(results: Results, runs: Runs) -> list[str]:
    """Metrics at the end of training."""
    there = set(results.table["metric"].unique())
    shown = {metric: heading for metric, heading in SHOWN.items() if metric in there}
    rows = [
        [cell, *(over_runs(results, of_cell, metric, last) or "" for metric in shown)]
        for cell, of_cell in runs.items()
    ]
    return ["## At the end of training", "", *table(["cell", *shown.values()], rows), ""] if shown and runs else []


def _figures(study: Study, results: Results, runs: Runs) -> list[str]:
    told = numbers(results, runs)
    return [*told, f"![figures of the paper]({study.figures.name})", ""] if told else []


def _made_by(results: Results, runs: Runs) -> list[str]:
    """The versions and machines that made the runs, and their cells."""
    cells: dict[str, list[str]] = {}
    for cell in runs:
        for made in sorted(results.table["made"][results.table["cell"] == cell].unique()):
            cells.setdefault(made, []).append(cell)
    return ["## Made by", "", *(f"- {', '.join(of)}: `{made}`" for made, of in cells.items())]


# ---- the picture


def draw(study: Study, results: Results, file: Path) -> None:
    """Draw the mean held-out score of each cell over steps, and its area with the interval over seeds."""
    found = runs_by_cell(study, results)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    course, areas = figure.subplots(1, 2, width_ratios=(3, 2))
    for number, runs in enumerate(found.values()):
        curves = [results.curve(run, HELD_OUT + study.reward) for run in runs]
        draw_curve(course, mean_curve(curves), number, banded=len(found) <= FEW)
        draw_interval(areas, over_seeds([area(curve) for curve in curves]), number)
    course.axhline(study.target, color="grey", linewidth=0.6)
    course.set(xlabel="step", ylabel=f"held-out {study.reward.replace('_', ' ')}")
    if study.reward in RIGHT_OR_WRONG:
        course.set_ylim(0, 1)
    course.set_title("mean over seeds", fontsize="medium")
    named = [plain(f"{cell} ({len(runs)})") for cell, runs in found.items()]
    areas.set_yticks(range(len(found)), named)
    areas.invert_yaxis()
    areas.set(xlabel="area: mean score over training")
    areas.set_title("cells (seeds), with 95 % intervals over seeds", fontsize="medium")
    save(figure, file, dpi=120)


def read_cells(file: Path) -> list[Series]:
    """Return the runs that a study reports, as series that can be drawn beside others.

    `file`: the results. The study's file beside it gives the learning rates and the order of the cells.
    """
    named = file.with_suffix(".yaml")
    for needed in (file, named):
        if not needed.is_file():
            raise ValueError(f"There is no {needed}: a study's results must be beside its file ({named.name}).")
    study, results = read_study(named), Results(file)
    found = runs_by_cell(study, results)
    if not found:
        raise ValueError(f"{file} has no run of a cell of {named.name} with held-out {study.reward}.")
    for cell, runs in found.items():
        if len({identity for run in runs for identity in results.identities_of(run)}) > 1:
            raise ValueError(
                f"{file}: the runs of {cell} have different settings or versions, so their mean would describe none "
                f"of them. `a2tgpo study {named}` makes the outdated ones again."
            )
    return [Series(cell, [Measured(results.curves(run)) for run in runs], 1) for cell, runs in found.items()]
