"""values scored twice -> what gains differ by through rounding alone.

In 16 bits a value is off by some hundredths, in float32 by some millionths. How far, depends on the model and on what
it reads, so it is measured: some contexts of each batch are scored once more with the rounding of all layers drawn
anew (`rounding_redrawn`).

    d = V' - V                      of the same context
    floor = 4 rms(d)                at least GAIN_FLOOR

A gain is a difference of two values as well, so that rms(d) is the standard deviation of rounding in a gain. A gain
closer to the mean of its cell than the floor counts as the mean (`credit/scores.py`).

Shapes: B rollouts, K contexts.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


# Nats: what gains of float32 differ by through rounding is well below. At this deviation z-scores fade out, too
# (`VARIANCE_FLOOR` of `credit/scores.py` is its square).
GAIN_FLOOR = 1e-4
FLOOR_DEVIATIONS = 4.0  # beyond which rounding takes a gain once in 16,000 times


@contextmanager
def rounding_redrawn(model: nn.Module, unit: float) -> Iterator[None]:
    """Inside, the model reads what it reads moved by less than it rounds: no layer rounds as it did before."""

    def move(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
        generator = torch.Generator(embedded.device).manual_seed(0)
        # One draw for all rows: a row may have thousands of tokens, each with thousands of numbers.
        moves = torch.rand(embedded.shape[1:], generator=generator, device=embedded.device) * 2 - 1
        return (embedded * (1 + unit * moves)).to(embedded.dtype)

    handle = model.get_input_embeddings().register_forward_hook(move)  # type: ignore[operator]  # of transformers
    try:
        yield
    finally:
        handle.remove()


def spread_out(rows: int, ranks: int = 1) -> list[int]:
    """Which of a rank's rollouts are scored twice, from all over them, as many on each rank.

    Of all ranks' rollouts that is an eighth, 8 at least and 16 at most, if there are as many.

    Example: 16 rollouts alone -> 8 of them; 16 on each of 8 ranks -> 2 of each rank's
    """
    of_all = max(8, min(16, rows * ranks // 8))
    number = min(rows, math.ceil(of_all / ranks))
    return [i * rows // number for i in range(number)]


def squares(differences_BK: Tensor) -> tuple[float, int]:
    """Sum of the squares of those that are finite, and their number, to add over ranks."""
    finite = differences_BK[differences_BK.isfinite()].double()
    return finite.square().sum().item(), finite.numel()


def gain_floor(of_ranks: Sequence[tuple[float, int]]) -> float:
    """The floor, from the `squares` of all ranks.

    Example: differences 0.03 and -0.03 on one rank, 0.03 on another -> 4 x 0.03 = 0.12
    """
    total, number = (sum(column) for column in zip(*of_ranks, strict=True))
    return max(GAIN_FLOOR, FLOOR_DEVIATIONS * math.sqrt(total / max(number, 1)))
