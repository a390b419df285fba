"""results of a study -> what each cell came to, with intervals over seeds, and its differences from another, paired.

Intervals are Student's: percentiles of draws of five seeds would be far too narrow. A difference is taken seed by
seed, so that what both of its runs have in common falls out. All differences that a report judges are one family: the
more there are, the clearer each must be (Holm).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..report.scores import Estimate
from ..report.seeds import over_seeds
from ..report.series import Curve, area
from .results import HELD_OUT, Results
from .study import Run, Study


T = TypeVar("T")
Pair = tuple[str, str]  # a cell, and the one that it is compared with
Runs = Mapping[str, Sequence[Run]]

FEWEST = 5  # seeds that decide anything
LEVEL = 0.05  # of the family
NOT_DECIDED = "not decided"
ANGLES = 100_000  # at which an integral is summed


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    area: float  # mean held-out score over training
    end: float
    steps: float | None  # to the target; None: not reached
    tokens: float | None  # that were read and written until then


Outcomes = Mapping[str, Mapping[int, Outcome]]  # by cell and seed


def outcome(study: Study, results: Results, run: Run) -> Outcome | None:
    """None of a run that is not there."""
    curve = results.curve(run, HELD_OUT + study.reward)
    if not curve:
        return None
    steps = first_at(curve, study.target)
    read = results.curve(run, "num_tokens")
    tokens = height_at([(0, 0.0), *read], steps) if read and steps is not None else None
    return Outcome(area(curve), curve[-1][1], steps, tokens)


def outcomes_of(study: Study, results: Results, runs: Runs) -> Outcomes:
    """Of all runs that are there."""
    return {
        cell: {run.seed: found for run in of_cell if (found := outcome(study, results, run)) is not None}
        for cell, of_cell in runs.items()
    }


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


# ---- differences between cells


@dataclass(frozen=True)
class Difference:
    """Of a cell from another, over the seeds that both have."""

    area: Estimate
    end: Estimate
    p: float  # Student's, of the areas; by Holm's rule, for all differences of the report

    @property
    def verdict(self) -> str:
        """Whether the cell is better or worse; less than five seeds decide nothing."""
        if self.area.number < FEWEST or self.p >= LEVEL:
            return NOT_DECIDED
        return "better" if self.area.mean > 0 else "worse"


def differences(outcomes: Outcomes, pairs: Iterable[Pair]) -> dict[Pair, Difference]:
    """Of the pairs of cells of which both have runs of the same seeds."""
    met = {(cell, other): paired(outcomes.get(cell, {}), outcomes.get(other, {})) for cell, other in pairs}
    areas = {pair: [one.area - other.area for one, other in both] for pair, both in met.items() if both}
    ends = {pair: over_seeds([one.end - other.end for one, other in both]) for pair, both in met.items() if both}
    by_chance = holm({pair: p_value(of_pair) for pair, of_pair in areas.items()})
    return {pair: Difference(over_seeds(of_pair), ends[pair], by_chance[pair]) for pair, of_pair in areas.items()}


def paired(ones: Mapping[int, T], others: Mapping[int, T]) -> list[tuple[T, T]]:
    """What the seeds that both have came to. Example: {0: 1.0, 1: 2.0} and {1: 5.0} -> [(2.0, 5.0)]"""
    return [(one, others[seed]) for seed, one in ones.items() if seed in others]


def p_value(values: Sequence[float]) -> float:
    """How often numbers with the mean 0 have a mean that is as far from it (Student's t, on both sides).

    P(|T| < t) of n - 1 degrees of freedom is the share of the integral of cos^(n - 2) from 0 to pi / 2 that lies
    below the angle with the tangent t / sqrt(n - 1).

    Example: 1, 2 and 3 -> t = 2 sqrt(3), 0.0742
    """
    number = len(values)
    if number < 2 or max(values) == min(values):
        return float(number < 2 or values[0] == 0)
    t = abs(np.mean(values)) / (np.std(values, ddof=1) / np.sqrt(number))
    angles = (np.arange(ANGLES) + 0.5) / ANGLES * np.pi / 2
    heights = np.cos(angles) ** (number - 2)
    return float(heights[angles > np.arctan(t / np.sqrt(number - 1))].sum() / heights.sum())


def holm(by_chance: Mapping[Pair, float]) -> dict[Pair, float]:
    """The same for several comparisons, of which one comes out by chance in one of twenty reports (Holm).

    Example: 0.01, 0.04 and 0.03 -> 0.03, 0.06 and 0.06: the smallest three times, the next one twice
    """
    found, highest = {}, 0.0
    for place, (pair, p) in enumerate(sorted(by_chance.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(by_chance) - place)))
        found[pair] = highest
    return found
