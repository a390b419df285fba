"""results of a study -> its report in Markdown, and its learning curves in one picture. Nothing in it is typed."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..report.looks import draw_curve, save
from ..report.seeds import over_seeds
from ..report.series import Run as Measured
from ..report.series import Series, mean_curve
from .calls import calls_table
from .claims import claims
from .comparison import best_rates, differences, outcome, tried_areas, verdict
from .figures import numbers
from .results import HELD_OUT, Results
from .study import Study, read_study
from .tables import Runs, cost_table, last, mechanism_tables, over_runs, table


ENOUGH = (
    "Intervals are over seeds, all of which answer the same held-out questions, once each. Better / worse: the 95 % "
    "interval of the difference leaves 0 out, over five seeds or more; of twenty such comparisons of equals one comes "
    "out so by chance."
)


def report(study: Study, results: Results) -> str:
    """The report of what there is so far."""
    runs = runs_by_cell(study, results)
    lines = [
        title(study),
        "",
        f"By `a2tgpo study {study.file.name}`, from `{study.results.name}`. Area: mean score over training, evaluated "
        f"every {study.every} steps; a step of a cell that rolls out again (resample_limit) costs more than others. "
        f"Means over seeds with their 95 % intervals (Student's t); differences from {study.against} are taken seed "
        f"by seed. {ENOUGH}",
        "",
        *_stale(results),
    ]
    lines += [*_main_table(study, results, runs), "", f"![learning curves]({study.picture.name})", ""]
    lines += _claims_table(study, results, runs)
    lines += _rates_table(study, results)
    lines += _groups_table(study, results, runs)
    lines += _metrics_table(results, runs)
    lines += calls_table(results, runs)
    lines += mechanism_tables(results, runs)
    lines += _figures(study, results, runs)
    lines += cost_table(study.against, results, runs)
    lines += _made_by(results)
    return "\n".join(lines)


def title(study: Study) -> str:
    return f"# {study.file.stem}: held-out {study.reward.replace('_', ' ')}"


def _stale(results: Results) -> list[str]:
    if not results.stale:
        return []
    cells = ", ".join(results.stale)
    return [f"Of other settings, or another version, are runs of {cells}; they are left out here.", ""]


def runs_by_cell(study: Study, results: Results) -> Runs:
    """The runs that are reported, of those that are there."""
    found: Runs = {}
    for run in study.reported(best_rates(study, results)):
        if results.curve(run, HELD_OUT + study.reward):
            found.setdefault(run.cell, []).append(run)
    return {cell: found[cell] for cell in study.cells if cell in found}


def _main_table(study: Study, results: Results, runs: Runs) -> list[str]:
    rows = []
    for cell, of_cell in runs.items():
        there = [one for run in of_cell if (one := outcome(study, results, run)) is not None]
        steps = [one.steps for one in there if one.steps is not None]
        tokens = [one.tokens for one in there if one.tokens is not None]
        pairs = differences(study, results, of_cell, runs.get(study.against, []))
        difference = over_seeds(pairs) if pairs and cell != study.against else None
        rows.append(
            [
                cell,
                len(there),
                over_seeds([one.area for one in there]),
                over_seeds([one.end for one in there]),
                f"{np.median(steps):.0f} ({len(steps)} of {len(there)})" if steps else f"- (0 of {len(there)})",
                f"{np.median(tokens) / 1e6:.2f}" if tokens else "-",
                difference or "",
                verdict(difference) if difference else "",
            ]
        )
    goal = f"{study.target:g}"
    head = ["cell", "seeds", "area", "at the end", f"steps to {goal} (median; seeds that came to it)"]
    return table(
        [*head, f"million tokens to {goal} (median of these)", f"area, less that of {study.against}", ""], rows
    )


def _claims_table(study: Study, results: Results, runs: Runs) -> list[str]:
    rows = list(claims(study, results, runs))
    return ["## What the paper claims", "", *table(["claim", "found here", ""], rows), ""] if rows else []


def _rates_table(study: Study, results: Results) -> list[str]:
    if study.learning_rates is None:
        return []
    values, seeds = study.learning_rates.values, study.learning_rates.seeds
    chosen = best_rates(study, results)
    rows = []
    for cell in study.cells:
        areas = tried_areas(study, results, cell)
        if not any(areas.values()):
            continue
        best = chosen.get(cell)
        marked = [
            "" if areas[rate] is None else f"**{areas[rate]:.3f}**" if rate == best else f"{areas[rate]:.3f}"
            for rate in values
        ]
        rows.append([cell, *marked])
    head = ["cell", *(f"{rate:g}" for rate in values)]
    title = f"## Learning rates\n\nMean areas on seeds that are not reported ({', '.join(map(str, seeds))})."
    return [title, "", *table(head, rows), ""] if rows else []


def _groups_table(study: Study, results: Results, runs: Runs) -> list[str]:
    """Scores of parts of the questions, at the end."""
    beginning = f"{HELD_OUT}{study.reward}/"
    names = sorted({name for name in results.table["metric"].unique() if name.startswith(beginning)})
    if not names or not runs:
        return []
    rows = [
        [cell, *(over_runs(results, of_cell, name, last) or "" for name in names)] for cell, of_cell in runs.items()
    ]
    return ["## By question, at the end", "", *table(["cell", *(n.removeprefix(beginning) for n in names)], rows), ""]


SHOWN = {  # metric -> its heading
    f"{HELD_OUT}tool calls": "calls a question",
    f"{HELD_OUT}useful/share_turn_1": "first searches of use",
    f"{HELD_OUT}useful/auc/gains": "AUC of the gain",
    "clip_fraction/mean": "clipped",
    "groups/teach_nothing": "groups that teach nothing",
    "entropy": "entropy",
}


def _metrics_table(results: Results, runs: Runs) -> list[str]:
    """At the end of training: what there is to say of how it went."""
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


def _made_by(results: Results) -> list[str]:
    """By what, and on which machines."""
    made = sorted(results.table["made"].unique())
    return ["## Made by", "", *(f"- `{one}`" for one in made)]


# ---- the picture


def draw(study: Study, results: Results, file: Path) -> None:
    """Mean held-out score over steps, of each cell, with the interval over its seeds."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (cell, runs) in enumerate(runs_by_cell(study, results).items()):
        curves = [results.curve(run, HELD_OUT + study.reward) for run in runs]
        draw_curve(axes, mean_curve(curves), number, f"{cell} ({len(runs)})")
    axes.axhline(study.target, color="grey", linewidth=0.6)
    axes.set(xlabel="step", ylabel=f"held-out {study.reward.replace('_', ' ')}", ylim=(0, 1))
    axes.legend(title="cell (seeds)", fontsize="small", loc="upper left")
    save(figure, file, dpi=120)


def read_cells(file: Path) -> list[Series]:
    """Of a study's results, the runs that its report is of, as they are drawn beside others.

    `file`: the results. The study's file beside it says which learning rate was chosen, and the order of the cells.
    """
    named = file.with_suffix(".yaml")
    for needed in (file, named):
        if not needed.is_file():
            raise ValueError(f"There is no {needed}: results of a study lie beside its file ({named.name}).")
    study, results = read_study(named), Results(file)
    found = runs_by_cell(study, results)
    if not found:
        raise ValueError(f"{file} has no run of a cell of {named.name} with held-out {study.reward}.")
    for cell, runs in found.items():
        if len({identity for run in runs for identity in results.identities_of(run)}) > 1:
            raise ValueError(
                f"{file}: runs of {cell} are of several settings or versions, and their mean would be of none. "
                f"`a2tgpo study {named}` makes those again that are old."
            )
    return [Series(cell, [Measured(results.curves(run)) for run in runs], 1) for cell, runs in found.items()]
