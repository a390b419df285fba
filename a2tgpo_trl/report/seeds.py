"""a number for each seed -> their mean, and the 95 % confidence interval of the mean over all seeds (Student's t)."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from .scores import Estimate


# 97.5 % quantiles of Student's t, for 1 to 30 degrees of freedom.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def quantile(number: int) -> float:
    """Return Student's quantile for the mean of `number` numbers, two at least; never below the exact one."""
    return T_QUANTILES[min(number - 2, len(T_QUANTILES) - 1)]


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean and 95 % interval (Student's t); for a single seed, the interval is its value.

    Example: 1, 2 and 3 -> 2, from 2 - 4.303 / sqrt(3) = -0.484 to 4.484
    """
    number, mean = len(values), float(fmean(values))
    half = float(quantile(number) * stdev(values) / math.sqrt(number)) if number > 1 else 0.0
    return Estimate(mean, mean - half, mean + half, number)


def weighted(values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Return the same for weighted numbers; with equal weights, it is `over_seeds`.

        half-width = t sqrt(n / (n - 1) sum of (w (x - mean))^2) / sum of w

    Example: 1, 2 and 3, of which the last weighs twice -> 9/4, from -0.344 to 4.844: (w (x - mean))^2 are 25/16, 1/16
        and 36/16, so 4.303 sqrt(3/2 x 62/16) / 4 = 2.593
    """
    number, total = len(values), math.fsum(weights)
    mean = math.fsum(weight * value for value, weight in zip(values, weights, strict=True)) / total
    squares = math.fsum((weight * (value - mean)) ** 2 for value, weight in zip(values, weights, strict=True))
    half = quantile(number) * math.sqrt(number / (number - 1) * squares) / total if number > 1 else 0.0
    return Estimate(mean, mean - half, mean + half, number)
