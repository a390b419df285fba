"""gains (N,K), groups (N,), outcome advantages (N,) -> advantages (N,K) and clip scale (N,K).

N rollouts of all ranks, K turns. NaN marks "this turn has no gain", going in and coming out: the answer turn, a turn
that was cut off, a turn whose probe was not finite, and the columns beyond a rollout's last turn. Zero is a gain like
any other. A cell is one turn index of one prompt.

Statistics are computed in float32 at least and returned in the dtype that came in.
"""

import torch
from torch import Tensor


# The population z-score of the released A2TGPO code: (x - mean) / (sqrt(var + VARIANCE_FLOOR) + SCALE_FLOOR).
VARIANCE_FLOOR = 1e-8
SCALE_FLOOR = 1e-6


def _zscore(values: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Population z-score of the entries of a flat tensor among those with the same cell number; NaN stays NaN."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    present = ~wide.isnan()
    # Subtracting one member of the cell first keeps the digits when gains are large and close together, and makes a
    # cell of equal gains exactly zero.
    lowest = wide.new_full((num_cells,), torch.inf).scatter_reduce(
        0, cell, wide.masked_fill(~present, torch.inf), reduce="amin"
    )
    shifted = torch.where(present, wide - lowest[cell], 0.0)

    def cell_mean(x: Tensor) -> Tensor:
        return (x.new_zeros(num_cells).scatter_add(0, cell, x) / count)[cell]

    count = wide.new_zeros(num_cells).scatter_add(0, cell, present.to(wide.dtype)).clamp(min=1.0)
    centred = torch.where(present, shifted - cell_mean(shifted), 0.0)
    scores = centred / ((cell_mean(centred.square()) + VARIANCE_FLOOR).sqrt() + SCALE_FLOOR)
    # A turn alone in its cell has nothing to be compared with: 0, so that it lives on its outcome.
    scores = torch.where(count[cell] > 1, scores, 0.0)
    return torch.where(present, scores, torch.nan).to(values.dtype)


def turn_group_zscore(gains_NK: Tensor, group_ids_N: Tensor) -> Tensor:
    """Compare each turn with the turns at the same depth of the same prompt.

        Z[i,t] = (IG[i,t] - mean) / (sqrt(var + 1e-8) + 1e-6)     over the rollouts of i's group with a gain at t

    0 in a cell of one member or of equal gains.

    Example (one group): gains [[1, 5], [3, nan]] -> [[-1, 0], [1, nan]]; 5 is alone at its depth.
    """
    groups, group_N = group_ids_N.unique(return_inverse=True)
    num_turns = gains_NK.size(1)
    cell_NK = group_N.unsqueeze(1) * num_turns + torch.arange(num_turns, device=gains_NK.device)
    return _zscore(gains_NK.flatten(), cell_NK.flatten(), len(groups) * num_turns).view_as(gains_NK)


def pooled_zscore(gains_NK: Tensor, group_ids_N: Tensor) -> Tensor:
    """Compare each turn with all turns of all rollouts of the same prompt, whatever their depth (IGPO).

    Example (one group): gains [[1, 5], [3, nan]] -> mean 3, std 1.633 -> [[-1.2247, 1.2247], [0, nan]]
    """
    groups, group_N = group_ids_N.unique(return_inverse=True)
    cell_NK = group_N.unsqueeze(1).expand_as(gains_NK)
    return _zscore(gains_NK.flatten(), cell_NK.flatten(), len(groups)).view_as(gains_NK)


def no_zscore(gains_NK: Tensor, group_ids_N: Tensor) -> Tensor:
    """Leave gains in their own unit: the ablation without normalisation."""
    return gains_NK


NORMALIZATIONS = {"turn_group": turn_group_zscore, "pooled": pooled_zscore, "none": no_zscore}


def discounted_sum(scores_NK: Tensor, gamma: float, rescale: bool) -> Tensor:
    """Credit a turn with its own score and, discounted, with those of the turns after it.

        D[i,t] = sum_{j>=t} gamma^(j-t) Z[i,j] / sqrt(n)          n = number of terms where rescale, else 1

    Turns without a score add no term. Dividing by the root keeps the variance of early turns, which sum many terms,
    equal to that of late ones.

    Example (gamma 1): scores [2, nan, 1] -> [3/sqrt(2), nan, 1]
    """
    wide_NK = scores_NK.to(torch.promote_types(scores_NK.dtype, torch.float32))
    present_NK = ~wide_NK.isnan()
    step = torch.arange(wide_NK.size(1), device=wide_NK.device)
    lag_KK = step.unsqueeze(0) - step.unsqueeze(1)  # [t, j] -> j - t
    weight_KK = (gamma ** lag_KK.clamp(min=0).to(wide_NK.dtype)) * (lag_KK >= 0)
    total_NK = torch.where(present_NK, wide_NK, 0.0) @ weight_KK.T
    if rescale:
        terms_NK = present_NK.to(wide_NK.dtype) @ (lag_KK >= 0).to(wide_NK.dtype).T
        total_NK = total_NK / terms_NK.clamp(min=1.0).sqrt()
    return torch.where(present_NK, total_NK, torch.nan).to(scores_NK.dtype)


def clip_scale(zscores_NK: Tensor, beta: float) -> Tensor:
    """Widen the clip range of informative turns and narrow that of uninformative ones.

        c[i,t] = 1 + beta (2 sigmoid(Z[i,t]) - 1)                 between 1 - beta and 1 + beta; 1 without a gain

    Example (beta 0.3): scores [0, nan, 100] -> [1, 1, 1.3]
    """
    scale_NK = 1.0 + beta * (2.0 * zscores_NK.sigmoid() - 1.0)
    return torch.where(zscores_NK.isnan(), 1.0, scale_NK)


def a2tgpo_credit(
    gains_NK: Tensor,
    group_ids_N: Tensor,
    outcome_advantages_N: Tensor,
    *,
    alpha: float,
    gamma: float,
    beta: float,
    normalization: str = "turn_group",
    rescale: bool = True,
) -> tuple[Tensor, Tensor]:
    """Advantages and clip scale of every turn (A2TGPO, arXiv 2605.06200).

        A[i,t] = A_outcome[i] + alpha D[i,t]      D = discounted_sum(Z): turns with a gain
        A[i,t] = A_outcome[i]                     the answer turn and every other turn without one
        c[i,t] = clip_scale(Z[i,t])               fed by Z, not by its sum

    Args:
        gains_NK: information gain of each turn, NaN where there is none.
        group_ids_N: the prompt each rollout belongs to; any integers, in any order.
        outcome_advantages_N: advantage of each rollout from its reward.
        alpha: weight of the gains beside the outcome.
        gamma: discount per turn.
        beta: how far the clip range follows the gain.
        normalization: "turn_group" (A2TGPO), "pooled" (IGPO) or "none".
        rescale: divide accumulated scores by the root of their number.

    Example: gains [[1, nan], [3, nan]], one group, outcomes [0, 1], alpha 0.3, beta 0.3: scores -1 and 1, so
    advantages [[-0.3, 0], [1.3, 1]] and clip scales [[0.861, 1], [1.139, 1]].
    """
    scores_NK = NORMALIZATIONS[normalization](gains_NK, group_ids_N)
    credit_NK = discounted_sum(scores_NK, gamma, rescale).nan_to_num(nan=0.0)
    advantages_NK = outcome_advantages_N.unsqueeze(1) + alpha * credit_NK
    return advantages_NK, clip_scale(scores_NK, beta)
