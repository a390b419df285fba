"""results of a study -> the results of each cell, with intervals over seeds, and its paired differences from another.

Intervals are Student's, because bootstrap percentiles of five seeds would be far too narrow. A difference is taken
seed by seed, so that what the two runs share cancels. All differences that a report judges form one family: the more
there are, the clearer each must be (Holm).
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

FEWEST = 5  # seeds needed to decide anything
LEVEL = 0.05  # for the whole family
NOT_DECIDED = "not decided"
ANGLES = 100_000  # at which the integral is summed


@dataclass(frozen=True)
class Outcome:
    """The results of a run."""

    area: float  # mean held-out score over training
    end: float
    steps: float | None  # until the target was reached; None if it was not
    tokens: float | None  # read and written until then


Outcomes = Mapping[str, Mapping[int, Outcome]]  # by cell and seed


def outcome(study: Study, results: Results, run: Run) -> Outcome | None:
    """Return the results of a run; None if the run is missing."""
    curve = results.curve(run, HELD_OUT + study.reward)
    if not curve:
        return None
    steps = first_at(curve, study.target)
    read = results.curve(run, "num_tokens")
    tokens = height_at([(0, 0.0), *read], steps) if read and steps is not None else None
    return Outcome(area(curve), curve[-1][1], steps, tokens)


def outcomes_of(study: Study, results: Results, runs: Runs) -> Outcomes:
    """Return the results of all runs that exist."""
    return {
        cell: {run.seed: found for run in of_cell if (found := outcome(study, results, run)) is not None}
        for cell, of_cell in runs.items()
    }


def first_at(curve: Curve, target: float) -> float | None:
    """Return the step at which a curve, straight between its points, first reaches the target.

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
    """Return each cell's learning rate with the largest mean area over the seeds of trials.

    Cells whose trials are incomplete are left out. Without trials, all have the rate of the recipe (None).
    """
    if study.learning_rates is None:
        return dict.fromkeys(study.cells)
    best: dict[str, float | None] = {}
    for cell in study.cells:
        areas = tried_areas(study, results, cell)
        if all(area is not None for area in areas.values()):
            best[cell] = max(areas, key=lambda rate: areas[rate] or 0.0)
    return best


def tried_areas(study: Study, results: Results, cell: str) -> dict[float, float | None]:
    """Return mean areas over the seeds of trials, by learning rate; None if a trial is missing."""
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
    """The difference of a cell from another, over the seeds that both have."""

    area: Estimate
    end: Estimate
    p: float  # Student's, of the areas, corrected by Holm's rule for all differences of the report

    def __neg__(self) -> "Difference":
        return Difference(_negative(self.area), _negative(self.end), self.p)

    @property
    def verdict(self) -> str:
        """Whether the cell is better or worse; fewer than five seeds decide nothing."""
        if self.area.number < FEWEST or self.p >= LEVEL:
            return NOT_DECIDED
        return "better" if self.area.mean > 0 else "worse"


def differences(outcomes: Outcomes, pairs: Iterable[Pair]) -> dict[Pair, Difference]:
    """Return the differences of those pairs of cells that have seeds in common.

    A pair and its reverse are one comparison, so that Holm's rule counts them once.
    """
    pairs = list(pairs)
    once = [pair for place, pair in enumerate(pairs) if pair[::-1] not in pairs[:place]]
    found = _differences(outcomes, once)
    return {pair: found.get(pair) or -found[pair[::-1]] for pair in pairs if pair in found or pair[::-1] in found}


def _differences(outcomes: Outcomes, pairs: Iterable[Pair]) -> dict[Pair, Difference]:
    met = {(cell, other): paired(outcomes.get(cell, {}), outcomes.get(other, {})) for cell, other in pairs}
    areas = {pair: [one.area - other.area for one, other in both] for pair, both in met.items() if both}
    ends = {pair: over_seeds([one.end - other.end for one, other in both]) for pair, both in met.items() if both}
    by_chance = holm({pair: p_value(of_pair) for pair, of_pair in areas.items()})
    return {pair: Difference(over_seeds(of_pair), ends[pair], by_chance[pair]) for pair, of_pair in areas.items()}


def _negative(found: Estimate) -> Estimate:
    return Estimate(-found.mean, -found.high, -found.low, found.number)


def paired(ones: Mapping[int, T], others: Mapping[int, T]) -> list[tuple[T, T]]:
    """Return the pairs of values of seeds that both have. Example: {0: 1.0, 1: 2.0} and {1: 5.0} -> [(2.0, 5.0)]"""
    return [(one, others[seed]) for seed, one in ones.items() if seed in others]


def p_value(values: Sequence[float]) -> float:
    """Return how often numbers with true mean 0 have a mean this far from it (Student's t, two-sided).

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
    """Correct p-values so that at most one of twenty reports has a comparison decided by chance (Holm).

    Example: 0.01, 0.04 and 0.03 -> 0.03, 0.06 and 0.06: the smallest three times, the next one twice
    """
    found, highest = {}, 0.0
    for place, (pair, p) in enumerate(sorted(by_chance.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(by_chance) - place)))
        found[pair] = highest
    return found
