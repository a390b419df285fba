"""results of a study -> what each cell came to, with intervals over seeds, and its differences from another, paired.

Intervals are Student's, as those of `a2tgpo compare`: percentiles of draws of five seeds would be far too narrow. A
difference is taken seed by seed, so that what both of its runs have in common falls out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..report.comparison import area
from ..report.scores import Estimate
from ..report.series import Curve
from .results import HELD_OUT, Results
from .study import Run, Study


FEWEST = 5  # seeds that decide anything


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    area: float  # mean held-out score over training
    end: float
    steps: float | None  # to the target; None: not reached
    tokens: float | None  # that were read and written until then


def outcome(study: Study, results: Results, run: Run) -> Outcome | None:
    """None of a run that is not there."""
    curve = results.curve(run, HELD_OUT + study.reward)
    if not curve:
        return None
    steps = first_at(curve, study.target)
    read = results.curve(run, "num_tokens")
    tokens = height_at([(0, 0.0), *read], steps) if read and steps is not None else None
    return Outcome(area(curve), curve[-1][1], steps, tokens)


def first_at(curve: Curve, target: float) -> float | None:
    """The step at which a curve, straight between its points, first comes to the target.

    Example: (0, 0.2), (10, 0.4), (20, 0.8) and 0.5 -> 12.5
    """
    if curve[0][1] >= target:
        return float(curve[0][0])
    for (a, x), (b, y) in zip(curve, curve[1:], strict=False):
        if y >= target:
            return a + (b - a) * (target - x) / (y - x)
    return None


def height_at(curve: Curve, step: float) -> float:
    steps, heights = zip(*curve, strict=True)
    return float(np.interp(step, steps, heights))


# ---- learning rates


def best_rates(study: Study, results: Results) -> dict[str, float | None]:
    """The learning rate of each cell with the largest mean area on the seeds that it was tried on; of cells whose
    trials are not all there, none. Without trials, all have that of the recipe (None)."""
    if study.learning_rates is None:
        return dict.fromkeys(study.cells)
    best: dict[str, float | None] = {}
    for cell in study.cells:
        areas = tried_areas(study, results, cell)
        if all(area is not None for area in areas.values()):
            best[cell] = max(areas, key=lambda rate: areas[rate] or 0.0)
    return best


def tried_areas(study: Study, results: Results, cell: str) -> dict[float, float | None]:
    """By learning rate, the mean over the seeds of trials; None where one is not there."""
    assert study.learning_rates is not None
    areas = {}
    for rate in study.learning_rates.values:
        found = [outcome(study, results, Run(cell, seed, rate)) for seed in study.learning_rates.seeds]
        there = [one.area for one in found if one is not None]
        areas[rate] = float(np.mean(there)) if len(there) == len(found) else None
    return areas


# ---- means over seeds


def differences(study: Study, results: Results, runs: Sequence[Run], others: Sequence[Run]) -> list[float]:
    """Areas of runs less those of the others, of seeds that both have."""
    areas, of_others = (
        {run.seed: found.area for run in of_cell if (found := outcome(study, results, run)) is not None}
        for of_cell in (runs, others)
    )
    return [area - other for area, other in paired(areas, of_others)]


def paired(ones: Mapping[int, float], others: Mapping[int, float]) -> list[tuple[float, float]]:
    """Numbers of the seeds that both have. Example: {0: 1.0, 1: 2.0} and {1: 5.0} -> [(2.0, 5.0)]"""
    return [(number, others[seed]) for seed, number in ones.items() if seed in others]


def verdict(difference: Estimate) -> str:
    """Whether the cell is better or worse; not to be told yet if the interval holds 0, or has less than five seeds."""
    if difference.number < FEWEST or difference.low <= 0 <= difference.high:
        return "not decided"
    return "better" if difference.mean > 0 else "worse"
