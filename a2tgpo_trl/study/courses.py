"""results of a study -> the tables of its report on how cells differ from step to step."""

from collections.abc import Iterable, Mapping

from ..report.scores import Estimate
from ..report.seeds import over_seeds
from .comparison import Pair, Runs, paired
from .results import Results
from .tables import table


TEACH_NOTHING = "groups/teach_nothing"


def courses_tables(results: Results, runs: Runs, pairs: Iterable[Pair], score: str) -> list[str]:
    """Return the tables of differences in score at each evaluation, and of groups without a difference in outcome."""
    values = {cell: values_at(results, runs, cell, score) for cell in runs}
    differences = {f"{cell}, less {other}": _less(values[cell], values[other]) for cell, other in pairs}
    nothing = {cell: _means(values_at(results, runs, cell, TEACH_NOTHING)) for cell in runs}
    return [
        *_by_step("Differences at each evaluation", differences),
        *_by_step("Groups that teach nothing, since the evaluation before", nothing),
    ]


Values = Mapping[int, Mapping[int, float]]  # by step and seed


def values_at(results: Results, runs: Runs, cell: str, metric: str) -> Values:
    """Return the values of a metric that a cell's runs have, by step and seed."""
    found: dict[int, dict[int, float]] = {}
    for run in runs[cell]:
        for step, value in results.curve(run, metric):
            found.setdefault(step, {})[run.seed] = value
    return found


def _less(values: Values, others: Values) -> dict[int, Estimate]:
    both = {step: paired(values[step], others[step]) for step in values if step in others}
    return {step: over_seeds([one - other for one, other in pairs]) for step, pairs in both.items() if pairs}


def _means(values: Values) -> dict[int, Estimate]:
    return {step: over_seeds(list(by_seed.values())) for step, by_seed in values.items()}


def _by_step(title: str, rows: Mapping[str, Mapping[int, Estimate]]) -> list[str]:
    """A table with a column for each step after 0; none if no row has a number."""
    steps = sorted({step for row in rows.values() for step in row if step > 0})
    if not steps:
        return []
    lines = [[name, *(row.get(step, "") for step in steps)] for name, row in rows.items() if row]
    return [f"## {title}", "", *table(["", *(f"step {step}" for step in steps)], lines), ""]
