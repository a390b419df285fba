"""gains, scores of single turns -> a flat dict of scalars. Entries without data are left out.

Shapes: N rollouts of all ranks, F turn rewards, K turns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..turns import LOGGED_TURNS, mean_metric
from .scores import Floor, state_cells, state_group_sizes, turn_group_zscore


def floor_metrics(gains_NK: Tensor, group_ids_N: Tensor, floors: Floor, of_logprobs: float) -> dict[str, float]:
    """Return how much rounding moves log-probabilities, and the share of cells in which it explains all gains.

    A cell is a turn index of a prompt that two rollouts or more have reached. Rounding explains all gains of a cell if
    none is further from the mean than its floor.

    Example: gains [[1, 1], [1.1, 3]], one group, both floors 0.1 -> gain/floor 0.1, gain/cells_below_floor 0.5
    """
    if gains_NK.isnan().all():
        return {}
    groups, group_N = group_ids_N.unique(return_inverse=True)
    scores_NK = turn_group_zscore(gains_NK, group_ids_N, floors)
    flags_2NK = torch.stack([~gains_NK.isnan(), scores_NK.nan_to_num(nan=0.0) != 0]).float()
    members, above = torch.zeros(2, len(groups), gains_NK.size(1), device=gains_NK.device).index_add(
        1, group_N, flags_2NK
    )
    return {"gain/floor": of_logprobs, **mean_metric("gain/cells_below_floor", (above[members > 1] == 0).float())}


def turn_reward_metrics(scores_NFK: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Return the unweighted mean of each turn reward, over all turns that have one and by turn.

    Example: failed_call of two rollouts [0, 1] and [1] -> mean 0.667, turn_1 0.5, turn_2 1
    """
    metrics: dict[str, float] = {}
    for f, name in enumerate(names):
        metrics |= mean_metric(f"turn_rewards/{name}/mean", scores_NFK[:, f])
        for k in range(min(scores_NFK.size(2), LOGGED_TURNS)):
            metrics |= mean_metric(f"turn_rewards/{name}/turn_{k + 1}", scores_NFK[:, f, k])
    return metrics


def state_metrics(states_NK: Tensor, group_ids_N: Tensor) -> dict[str, float]:
    """Return the mean number of turns that begin in a state, and the share of turns that are alone in theirs.

    Example: states [[0, 1], [0, -1]], one group -> states/turns 1.5 (two and one), states/alone 0.333
    """
    is_turn_NK = states_NK >= 0
    if not is_turn_NK.any():
        return {}
    cell_NK, _ = state_cells(states_NK, group_ids_N)
    sizes_NK = state_group_sizes(is_turn_NK, states_NK, group_ids_N)
    number = len(cell_NK[is_turn_NK].unique())
    return {
        "states/turns": is_turn_NK.sum().item() / number,
        "states/alone": (sizes_NK[is_turn_NK] == 1).float().mean().item(),
    }
