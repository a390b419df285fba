"""a number of each seed -> their mean, and where the mean over all seeds lies with 95 % confidence (Student's t)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from .scores import Estimate


# 97.5 % quantiles of Student's t, for 1 to 30 degrees of freedom.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def quantile(number: int) -> float:
    """Student's, for the mean of so many numbers, two at least; no less than it is."""
    return T_QUANTILES[min(number - 2, len(T_QUANTILES) - 1)]


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and the half-width of its 95 % confidence interval (Student's t); None of a single seed."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        number = len(values)
        if number < 2:
            return cls(values[0], None)
        return cls(fmean(values), quantile(number) * stdev(values) / math.sqrt(number))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval (Student's t); of a single seed, the interval is its value.

    Example: 1, 2 and 3 -> 2, from 2 - 4.303 / sqrt(3) = -0.484 to 4.484
    """
    spread = Spread.of(values)
    half = spread.half or 0.0
    return Estimate(float(spread.mean), float(spread.mean - half), float(spread.mean + half), len(values))


def weighted(values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """The same of numbers that weigh differently; with equal weights, it is `over_seeds`.

        half-width = t sqrt(n / (n - 1) sum of (w (x - mean))^2) / sum of w

    Example: 1, 2 and 3, of which the last weighs twice -> 9/4, from -0.344 to 4.844: (w (x - mean))^2 are 25/16, 1/16
        and 36/16, so 4.303 sqrt(3/2 x 62/16) / 4 = 2.593
    """
    number, total = len(values), math.fsum(weights)
    mean = math.fsum(weight * value for value, weight in zip(values, weights, strict=True)) / total
    squares = math.fsum((weight * (value - mean)) ** 2 for value, weight in zip(values, weights, strict=True))
    half = quantile(number) * math.sqrt(number / (number - 1) * squares) / total if number > 1 else 0.0
    return Estimate(mean, mean - half, mean + half, number)
