"""values, gains, clip scales, ratios -> a flat dict of scalars.

Turns are numbered from 1 in names (`turn_1` is the first), up to `LOGGED_TURNS`. Entries that have no data are left
out rather than logged as 0.

Shapes: N rollouts of all ranks, B of this rank, K turns, V contexts, T completion tokens.
"""

import torch
from torch import Tensor

from .turns import turn_means, turn_sums


LOGGED_TURNS = 8


def _mean(name: str, values: Tensor) -> dict[str, float]:
    values = values[~values.isnan()]
    return {name: values.mean().item()} if values.numel() else {}


def _std(name: str, values: Tensor) -> dict[str, float]:
    values = values[~values.isnan()]
    return {name: values.std(correction=0).item()} if values.numel() else {}


def _describe_gains(name: str, gains: Tensor) -> dict[str, float]:
    positive = torch.where(gains.isnan(), gains, (gains > 0).to(gains.dtype))
    return {**_mean(f"{name}/mean", gains), **_std(f"{name}/std", gains), **_mean(f"{name}/share_positive", positive)}


def turn_metrics(num_turns_N: Tensor) -> dict[str, float]:
    """How many turns the policy takes, over the rollouts that are in the loss."""
    if not len(num_turns_N):
        return {}
    turns = num_turns_N.float()
    return {"turns/mean": turns.mean().item(), "turns/max": turns.max().item()}


def gain_metrics(values_NV: Tensor, gains_NK: Tensor, clip_scale_NK: Tensor, group_ids_N: Tensor) -> dict[str, float]:
    """What the gain pass says about the policy, over all turns and by turn."""
    has_gain_NK = ~gains_NK.isnan()
    scale_NK = torch.where(has_gain_NK, clip_scale_NK, torch.nan)
    groups, group_N = group_ids_N.unique(return_inverse=True)
    members = torch.zeros(len(groups), gains_NK.size(1), device=gains_NK.device)
    members.index_add_(0, group_N, has_gain_NK.to(members.dtype))  # rollouts in each cell

    last_N = (~values_NV.isnan()).long().cumsum(dim=1).argmax(dim=1, keepdim=True)  # a rollout's last finite value
    metrics = {
        **_describe_gains("gain", gains_NK),
        **_mean("value/before", values_NV[:, 0]),
        **_mean("value/after", values_NV.gather(1, last_N)),
        **_mean("clip_scale/mean", scale_NK),
        **_mean("turns/singleton_cells", (members[members > 0] == 1).float()),
    }
    for k in range(min(gains_NK.size(1), LOGGED_TURNS)):
        if has_gain_NK[:, k].any():
            turn = f"turn_{k + 1}"
            metrics |= {
                **_describe_gains(f"gain/{turn}", gains_NK[:, k]),
                **_mean(f"value/after_{turn}", values_NV[:, k + 1]),
                **_mean(f"clip_scale/{turn}", scale_NK[:, k]),
                **_mean(f"turns/survivors_{turn}", members[:, k]),
            }
    return metrics


def ratio_sums(
    ratio_BT: Tensor,
    advantages_BT: Tensor,
    low: float | Tensor,
    high: float | Tensor,
    turn_BT: Tensor,
    num_turns: int,
) -> Tensor:
    """Sums over rollouts of each turn's mean ratio, clipped share of tokens and presence: (3,K), to add over ranks."""
    clipped_BT = ((ratio_BT < 1 - low) & (advantages_BT < 0)) | ((ratio_BT > 1 + high) & (advantages_BT > 0))
    present_BK = (turn_sums(torch.ones_like(ratio_BT), turn_BT, num_turns) > 0).to(ratio_BT.dtype)
    return torch.stack(
        [
            turn_means(ratio_BT, turn_BT, num_turns).sum(dim=0),
            turn_means(clipped_BT.to(ratio_BT.dtype), turn_BT, num_turns).sum(dim=0),
            present_BK.sum(dim=0),
        ]
    )


def ratio_metrics(sums_3K: Tensor) -> dict[str, float]:
    """Mean ratio and clipped share, over all turns and by turn, from the sums of all ranks."""
    ratios, clipped, counts = sums_3K.tolist()
    metrics = {}
    if sum(counts):
        metrics = {"turn_ratio/mean": sum(ratios) / sum(counts), "clip_fraction/mean": sum(clipped) / sum(counts)}
    for k, count in enumerate(counts[:LOGGED_TURNS]):
        if count:
            metrics[f"turn_ratio/turn_{k + 1}"] = ratios[k] / count
            metrics[f"clip_fraction/turn_{k + 1}"] = clipped[k] / count
    return metrics
