"""values, gains, clip scales -> a flat dict of scalars. Turns are numbered from 1 in names, as `turn_1`.

Entries that have no data are left out rather than logged as 0.

Shapes: N rollouts of all ranks, K turns, V contexts.
"""

import torch
from torch import Tensor

from ..turns import LOGGED_TURNS, mean_metric


def gain_metrics(values_NV: Tensor, gains_NK: Tensor, clip_scale_NK: Tensor, group_ids_N: Tensor) -> dict[str, float]:
    """Return metrics of values, gains and clip scales, over all turns and by turn."""
    has_gain_NK = ~gains_NK.isnan()
    scale_NK = torch.where(has_gain_NK, clip_scale_NK, torch.nan)
    groups, group_N = group_ids_N.unique(return_inverse=True)
    members = torch.zeros(len(groups), gains_NK.size(1), device=gains_NK.device)
    members.index_add_(0, group_N, has_gain_NK.to(members.dtype))  # rollouts in each cell

    last_N = (~values_NV.isnan()).long().cumsum(dim=1).argmax(dim=1, keepdim=True)  # a rollout's last finite value
    metrics = {
        **_describe_gains("gain", gains_NK),
        **mean_metric("value/before", values_NV[:, 0]),
        **mean_metric("value/after", values_NV.gather(1, last_N)),
        **mean_metric("clip_scale/mean", scale_NK),
        **mean_metric("turns/singleton_cells", (members[members > 0] == 1).float()),
    }
    for k in range(min(gains_NK.size(1), LOGGED_TURNS)):
        if has_gain_NK[:, k].any():
            turn = f"turn_{k + 1}"
            metrics |= {
                **_describe_gains(f"gain/{turn}", gains_NK[:, k]),
                **mean_metric(f"value/after_{turn}", values_NV[:, k + 1]),
                **mean_metric(f"clip_scale/{turn}", scale_NK[:, k]),
                **mean_metric(f"turns/survivors_{turn}", members[:, k]),
            }
    return metrics


def _describe_gains(name: str, gains: Tensor) -> dict[str, float]:
    positive = torch.where(gains.isnan(), gains, (gains > 0).to(gains.dtype))
    return {
        **mean_metric(f"{name}/mean", gains),
        **_std(f"{name}/std", gains),
        **mean_metric(f"{name}/share_positive", positive),
    }


def _std(name: str, values: Tensor) -> dict[str, float]:
    values = values[~values.isnan()]
    return {name: values.std(correction=0).item()} if values.numel() else {}
