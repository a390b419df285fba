"""evidence of a batch -> which groups teach nothing, because no turn of theirs has an advantage.

If all rollouts of a prompt earned the same and gained the same, their advantages are 0, and the work spent on them
changes no weight.

Shapes: N rollouts of all ranks, G groups, K turns.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .method import Evidence
from .scores import VARIANCE_FLOOR


# How much outcome advantages may differ and still count as equal: the scale below which z-scores fade out.
TOLERANCE = math.sqrt(VARIANCE_FLOOR)
# Advantage of a turn, in units of its weight, that is as good as none if outcomes are equal.
FADED = 1e-3


def uninformative_groups(evidence: Evidence, credit: Callable[[Evidence], Tensor], strength: float = 1.0) -> Tensor:
    """Return which groups leave every turn in the loss with an advantage of 0, in the order of their ids.

    For equal rewards, TRL's outcome advantages may differ from 0 by the rounding of their mean; they count as 0.

    Args:
        evidence: the evidence of a batch.
        credit: returns the advantages for it.
        strength: the weight of what distinguishes turns; advantages far below it count as none.

    Example: outcomes [0, 0 | -1, 1 | 0, nan], gains [[1, 5], [1, nan] | [nan, nan] twice | [3, nan], [nan, nan]] ->
    [True, False, True] by A2TGPO: 5 and 3 are alone in their cells; with "pooled" [False, False, True].
    """
    groups, group_N = evidence.group_ids_N.unique(return_inverse=True)
    outcomes_N = evidence.outcome_advantages_N.masked_fill(evidence.outcomes_N.isnan(), torch.nan)
    unlike_G = _unlike(outcomes_N, group_N, len(groups))
    counted_N = torch.where(unlike_G[group_N], evidence.outcome_advantages_N, 0.0)
    advantages_NK = credit(replace(evidence, outcome_advantages_N=counted_N))
    # Gains have a floor, but turn rewards and returns have one as low as their rounding, which then makes advantages.
    least = torch.where(unlike_G[group_N], TOLERANCE, FADED * strength).unsqueeze(1)
    informative_N = ((advantages_NK.abs() > least) & evidence.is_turn_NK).any(dim=1)
    return ~_any_of(informative_N, group_N, len(groups))


def _unlike(values: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Whether the entries with the same cell number differ, for each cell; NaN is no entry."""
    absent = values.isnan()
    empty = values.new_full((num_cells,), torch.inf)
    lowest = empty.scatter_reduce(0, cell, values.masked_fill(absent, torch.inf), reduce="amin")
    highest = (-empty).scatter_reduce(0, cell, values.masked_fill(absent, -torch.inf), reduce="amax")
    return highest - lowest > TOLERANCE  # -inf for a cell without entries


def _any_of(flags: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    return torch.zeros(num_cells, device=flags.device).index_add(0, cell, flags.float()) > 0
