"""values, gains, clip scales, ratios, log-probabilities -> a flat dict of scalars.

Turns are numbered from 1 in names (`turn_1` is the first), up to `LOGGED_TURNS`. Entries that have no data are left
out rather than logged as 0.

Shapes: N rollouts of all ranks, B of this rank, K turns, V contexts, T completion tokens.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .credit import turn_group_zscore
from .turns import turn_means, turn_sums


LOGGED_TURNS = 8
GAP_FLOOR = 0.01  # nats a token: probabilities of sampler and trainer within a percent, as 16 bits bring about
GAP_GROWTH = 2.0
# What adds up over the rounds of a batch.
TOTALS = (
    *("gain/seconds", "gain/forwards", "gain/failed_probes", "shaping/seconds", "tools/retries"),
    *("rollouts/sampling_seconds", "rollouts/tool_seconds"),
)


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


def floor_metrics(gains_NK: Tensor, group_ids_N: Tensor, floor: float) -> dict[str, float]:
    """What rounding moves gains by, and the share of cells in which no gain is further from the mean than that.

    A cell is a turn index of a prompt that two rollouts or more have come to.

    Example: gains [[1, 1], [1.1, 3]], one group, floor 0.1 -> gain/floor 0.1, gain/cells_below_floor 0.5
    """
    if gains_NK.isnan().all():
        return {}
    groups, group_N = group_ids_N.unique(return_inverse=True)
    scores_NK = turn_group_zscore(gains_NK, group_ids_N, floor)
    flags_2NK = torch.stack([~gains_NK.isnan(), scores_NK.nan_to_num(nan=0.0) != 0]).float()
    members, above = torch.zeros(2, len(groups), gains_NK.size(1), device=gains_NK.device).index_add(
        1, group_N, flags_2NK
    )
    return {"gain/floor": floor, **_mean("gain/cells_below_floor", (above[members > 1] == 0).float())}


def turn_reward_metrics(scores_NFK: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Mean of each turn reward, unweighted, over all turns that have one and by turn.

    Example: failed_call of two rollouts [0, 1] and [1] -> mean 0.667, turn_1 0.5, turn_2 1
    """
    metrics: dict[str, float] = {}
    for f, name in enumerate(names):
        metrics |= _mean(f"turn_rewards/{name}/mean", scores_NFK[:, f])
        for k in range(min(scores_NFK.size(2), LOGGED_TURNS)):
            metrics |= _mean(f"turn_rewards/{name}/turn_{k + 1}", scores_NFK[:, f, k])
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


def ratio_metrics(sums_3K: Tensor, clips: bool = True) -> dict[str, float]:
    """Mean ratio and, if the loss clips any, clipped share, over all turns and by turn, from the sums of all ranks."""
    ratios, clipped, counts = sums_3K.tolist()
    metrics = {}
    if sum(counts):
        metrics = {"turn_ratio/mean": sum(ratios) / sum(counts), "clip_fraction/mean": sum(clipped) / sum(counts)}
    for k, count in enumerate(counts[:LOGGED_TURNS]):
        if count:
            metrics[f"turn_ratio/turn_{k + 1}"] = ratios[k] / count
            metrics[f"clip_fraction/turn_{k + 1}"] = clipped[k] / count
    return {name: value for name, value in metrics.items() if clips or not name.startswith("clip_fraction/")}


def sampler_gap_sums(sampler_BT: Tensor, trainer_BT: Tensor, turn_BT: Tensor, num_turns: int) -> Tensor:
    """Sums over the tokens of each turn, to add over ranks: gap, absolute gap, number of tokens: (3,K).

    The gap of a sampled token is its log-probability by the sampler minus that by the trainer. A token for which
    either has no number (NaN) counts nowhere.
    """
    gap_BT = (sampler_BT - trainer_BT).float()
    known_BT = ~gap_BT.isnan()
    gap_BT = gap_BT.masked_fill(~known_BT, 0.0)  # NaN times nothing is NaN
    columns = (gap_BT, gap_BT.abs(), known_BT.to(gap_BT.dtype))
    return torch.stack([turn_sums(column_BT, turn_BT, num_turns).sum(dim=0) for column_BT in columns])


def sampler_gap_metrics(sums_3K: Tensor) -> dict[str, float]:
    """Mean gap between sampler and trainer, over all tokens and by turn, and whether it grows, from all ranks' sums.

    Where both have the same weights and the same mathematics the gap is rounding: it scatters around 0 and does not
    care for depth. A gap that grows from turn to turn says that the two read a long context differently.

        growth = mean |gap| of the tokens after the first turn / max(mean |gap| of the first turn, GAP_FLOOR)
        alarm  = 1 if growth > GAP_GROWTH, else 0

    Example: gaps of 0.02 and -0.04 in turn 1, of 0.08 and 0.10 in turn 2
        mean 0.04, turn_1 -0.01, turn_2 0.09; absolute 0.06, absolute_turn_1 0.03, absolute_turn_2 0.09
        growth 0.09 / 0.03 = 3, alarm 1
    Example: gaps of 0.001 in turn 1, of 0.005 in turn 2
        growth 0.005 / 0.01 = 0.5, alarm 0: both are rounding
    """
    gaps, absolutes, counts = sums_3K.tolist()
    metrics = {}
    if sum(counts):
        metrics = {
            "sampler_gap/mean": sum(gaps) / sum(counts),
            "sampler_gap/absolute": sum(absolutes) / sum(counts),
        }
    for k, count in enumerate(counts[:LOGGED_TURNS]):
        if count:
            metrics[f"sampler_gap/turn_{k + 1}"] = gaps[k] / count
            metrics[f"sampler_gap/absolute_turn_{k + 1}"] = absolutes[k] / count
    if counts[0] and sum(counts[1:]):
        growth = sum(absolutes[1:]) / sum(counts[1:]) / max(absolutes[0] / counts[0], GAP_FLOOR)
        metrics |= {"sampler_gap/growth": growth, "sampler_gap/alarm": float(growth > GAP_GROWTH)}
    return metrics


def over_rounds(rounds: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Scalars of rounds of so many rollouts each, as those of all their rollouts.

    A mean weighs as many as the rollouts of its round; a maximum ("max" in its last word) is that of all, a minimum
    likewise; seconds and counts of work (`TOTALS`) add up. What a round does not know (NaN, or no entry) is left out.

    Example: 16 rollouts with reward 0.375, gain/seconds 2; then 4 with 0, 1 -> reward 0.3, gain/seconds 3
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for rollouts, scalars in rounds:
        for name, value in scalars.items():
            if value == value:
                found.setdefault(name, []).append((rollouts, value))
    return {name: _together(name, entries) for name, entries in found.items()}


def _together(name: str, entries: Sequence[tuple[int, float]]) -> float:
    words = name.split("/")[-1].split("_")
    values = [value for _, value in entries]
    if name in TOTALS:
        return sum(values)
    if "max" in words or name in ("num_tokens", "tools/hung"):  # these two are counted up by the run itself
        return max(values)
    if "min" in words:
        return min(values)
    return sum(rollouts * value for rollouts, value in entries) / sum(rollouts for rollouts, _ in entries)
