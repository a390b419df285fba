"""values scored twice -> how much gains differ by rounding alone.

In 16 bits a value is off by some hundredths, in float32 by some millionths. The size depends on the model and on what
it reads, so it is measured: some contexts of each batch are scored again with different rounding in all layers
(`rounding_redrawn`).

    d = V' - V                      for the same context
    floor = 4 rms(d)                at least GAIN_FLOOR

A gain is also a difference of two values, so rms(d) is the standard deviation of rounding in a gain. A gain closer to
the mean of its cell than the floor counts as the mean (`credit/scores.py`).

Rounding affects log-probabilities. A probability moves with its logarithm in proportion to its size, so gains of
likely answers are off by more than those of unlikely ones, and each has its own floor (`floors_of_gains`).

Shapes: B rollouts, N of all ranks, V contexts, K turns.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


# In nats; rounding moves gains in float32 by much less. At this deviation z-scores also fade out (`VARIANCE_FLOOR` of
# `credit/scores.py` is its square).
GAIN_FLOOR = 1e-4
FLOOR_DEVIATIONS = 4.0  # rounding moves a gain further than this once in 16,000 times


@contextmanager
def rounding_redrawn(model: nn.Module, unit: float) -> Iterator[None]:
    """Move the model's input embeddings by less than rounding does, so that every layer rounds differently."""

    def move(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
        generator = torch.Generator(embedded.device).manual_seed(0)
        # One draw for all rows, because a row may have thousands of tokens with thousands of numbers each.
        moves = torch.rand(embedded.shape[1:], generator=generator, device=embedded.device) * 2 - 1
        return (embedded * (1 + unit * moves)).to(embedded.dtype)

    handle = model.get_input_embeddings().register_forward_hook(move)  # type: ignore[operator]  # of transformers
    try:
        yield
    finally:
        handle.remove()


def spread_out(rows: int, ranks: int = 1) -> list[int]:
    """Return the indices of a rank's rollouts that are scored twice, evenly spread, and as many on each rank.

    They are an eighth of all ranks' rollouts, with at least 8 and at most 16, if there are as many.

    Example: 16 rollouts alone -> 8 of them; 16 on each of 8 ranks -> 2 of each rank's
    """
    of_all = max(8, min(16, rows * ranks // 8))
    number = min(rows, math.ceil(of_all / ranks))
    return [i * rows // number for i in range(number)]


def as_logprobs(values: Tensor, measure: str) -> Tensor:
    """Return values of this measure as log-probabilities, whose rounding does not depend on their size."""
    return values.clamp(min=torch.finfo(values.dtype).tiny).log() if measure == "probability" else values


def floors_of_gains(values_NV: Tensor, floor: float, measure: str) -> float | Tensor:
    """Return how much gains between these values may differ by rounding: one number for all, or one for each.

    If the logarithms of p and p' are off by d and d', p and p' are off by p d and p' d', and so is their difference:

        floor of p' - p = floor sqrt((p^2 + p'^2) / 2)            floor, of d' - d, for log-probabilities

    Example: probabilities [[0.01, 0.02, 0.5]], floor 0.1 -> [[0.00158, 0.0354]]
    """
    if measure == "logprob":
        return floor
    squares_NV = values_NV.square()
    return floor * ((squares_NV[:, :-1] + squares_NV[:, 1:]) / 2).sqrt()


def squares(differences_BV: Tensor) -> tuple[float, int]:
    """Return the sum of squares of the finite differences and their number, to add over ranks."""
    finite = differences_BV[differences_BV.isfinite()].cpu().double()  # which not every device has
    return finite.square().sum().item(), finite.numel()


def gain_floor(of_ranks: Sequence[tuple[float, int]]) -> float:
    """Return the floor of log-probabilities, from the `squares` of all ranks.

    Example: differences 0.03 and -0.03 on one rank, 0.03 on another -> 4 x 0.03 = 0.12
    """
    total, number = (sum(column) for column in zip(*of_ranks, strict=True))
    return max(GAIN_FLOOR, FLOOR_DEVIATIONS * math.sqrt(total / max(number, 1)))
