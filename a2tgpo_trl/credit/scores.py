"""numbers of turns (N,K), groups (N,) -> z-scores, discounted sums and clip scale (N,K).

N rollouts of all ranks, K turns. NaN marks "this turn has none", going in and coming out: for a gain, the answer turn,
a turn that was cut off, a turn whose probe was not finite, and the columns beyond a rollout's last turn. Zero is a
number like any other. A cell is one turn index of one prompt.

Statistics are computed in float32 at least and returned in the dtype that came in.
"""

import torch
from torch import Tensor


# The population z-score of the released A2TGPO code: (x - mean) / (sqrt(var + VARIANCE_FLOOR) + SCALE_FLOOR).
VARIANCE_FLOOR = 1e-8
SCALE_FLOOR = 1e-6


Floor = float | Tensor  # of all entries, or of each


def _zscore(values_NK: Tensor, cell_NK: Tensor, num_cells: int, floor: Floor) -> Tensor:
    """Population z-score of the entries of a tensor among those with the same cell number; NaN stays NaN."""
    values, cell = values_NK.flatten(), cell_NK.flatten()
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
    floor = torch.as_tensor(floor, dtype=wide.dtype, device=wide.device)
    floors = torch.where(present, floor.expand_as(values_NK).flatten(), 0.0)
    noise = cell_mean(floors.square())
    scores = centred / ((cell_mean(centred.square()) + noise.clamp(min=VARIANCE_FLOOR)).sqrt() + SCALE_FLOOR)
    # What rounding moves some entries by, it moves their mean by as well, the less the more there are.
    scores = torch.where(centred.abs() > torch.maximum(floors, (noise / count[cell]).sqrt()), scores, 0.0)
    # A turn alone in its cell has nothing to be compared with: 0, so that it lives on its outcome.
    scores = torch.where(count[cell] > 1, scores, 0.0)
    return torch.where(present, scores, torch.nan).to(values.dtype).view_as(values_NK)


def turn_group_zscore(gains_NK: Tensor, group_ids_N: Tensor, floor: Floor = 0.0) -> Tensor:
    """Compare each turn with the turns at the same depth of the same prompt.

        Z[i,t] = (IG[i,t] - mean) / (sqrt(var + f^2) + 1e-6)      over the rollouts of i's group with a gain at t
        Z[i,t] = 0                                                where |IG[i,t] - mean| <= floor

    f is the floor, at least 1e-4: what rounding may move a gain by (`rounding.py`), 0 for what is exact. 0 in a cell
    of one member or of equal gains. Where rounding moves IG - mean by no more than the floor, the sign of Z does not
    depend on it: whatever is above the floor in one precision is on the same side of the mean in another.

    Example (one group): gains [[1, 5], [3, nan]] -> [[-1, 0], [1, nan]]; 5 is alone at its depth.
    Example (floor 0.1): gains [[1, 1], [1.15, 3]] -> [[0, -0.995], [0, 0.995]]: 0.075 from the mean is nothing, and
        1 from the mean is 1 / sqrt(1 + 0.01)
    """
    groups, group_N = group_ids_N.unique(return_inverse=True)
    num_turns = gains_NK.size(1)
    cell_NK = group_N.unsqueeze(1) * num_turns + torch.arange(num_turns, device=gains_NK.device)
    return _zscore(gains_NK, cell_NK, len(groups) * num_turns, floor)


def pooled_zscore(gains_NK: Tensor, group_ids_N: Tensor, floor: Floor = 0.0) -> Tensor:
    """Compare each turn with all turns of all rollouts of the same prompt, whatever their depth (IGPO).

    The floor is that of `turn_group_zscore`. Where each entry has its own, the deviation is widened by the mean of
    their squares, and an entry that is exact by itself still has to be off the mean by more than rounding moves that:
    sqrt(sum of f^2) / members.

    Example (one group): gains [[1, 5], [3, nan]] -> mean 3, std 1.633 -> [[-1.2247, 1.2247], [0, nan]]
    Example (floors 0.12 and 0): gains 0.05 and -0.05 beside outcomes 0.1 and -0.1 -> variance 0.00625, mean square of
        the floors 0.0072 -> [[0, 0.8622], [0, -0.8622]]; rounding moves the mean by sqrt(2 x 0.12^2) / 4 = 0.042
    """
    groups, group_N = group_ids_N.unique(return_inverse=True)
    cell_NK = group_N.unsqueeze(1).expand_as(gains_NK)
    return _zscore(gains_NK, cell_NK, len(groups), floor)


def no_zscore(gains_NK: Tensor, group_ids_N: Tensor, floor: Floor = 0.0) -> Tensor:
    """Leave gains in their own unit: the ablation without normalisation. Rounding stays as small as it is."""
    return gains_NK


NORMALIZATIONS = {"turn_group": turn_group_zscore, "pooled": pooled_zscore, "none": no_zscore}


def discounted_sum(scores_NK: Tensor, gamma: float, rescale: bool) -> Tensor:
    """Credit a turn that has a score with it and, discounted, with those of the turns after it.

        D[i,t] = sum_{j>=t} gamma^(j-t) Z[i,j] / sqrt(n)          n = number of terms where rescale, else 1

    Turns without a score add no term. Dividing by the root keeps the variance of early turns, which sum many terms,
    equal to that of late ones.

    Example (gamma 1): scores [2, nan, 1] -> [3/sqrt(2), nan, 1]
    """
    return returns(scores_NK, ~scores_NK.isnan(), gamma, rescale)


def returns(rewards_NK: Tensor, is_turn_NK: Tensor, gamma: float, rescale: bool) -> Tensor:
    """What a turn and those after it earned, discounted; NaN where a rollout has no such turn.

    As `discounted_sum`, but a turn without a reward of its own has the sum of the later ones all the same.

    Example (gamma 0.9): rewards [-0.1, 0, 1] -> [-0.1 + 0 + 0.81, 0.9, 1] = [0.71, 0.9, 1]
    Example (gamma 1, rescale): rewards [nan, 2, 1] -> [3/sqrt(2), 3/sqrt(2), 1]: the first turn adds no term
    """
    wide_NK = rewards_NK.to(torch.promote_types(rewards_NK.dtype, torch.float32))
    earned_NK = is_turn_NK & ~wide_NK.isnan()
    step = torch.arange(wide_NK.size(1), device=wide_NK.device)
    lag_KK = step.unsqueeze(0) - step.unsqueeze(1)  # [t, j] -> j - t
    weight_KK = (gamma ** lag_KK.clamp(min=0).to(wide_NK.dtype)) * (lag_KK >= 0)
    total_NK = torch.where(earned_NK, wide_NK, 0.0) @ weight_KK.T
    if rescale:
        terms_NK = earned_NK.to(wide_NK.dtype) @ (lag_KK >= 0).to(wide_NK.dtype).T
        total_NK = total_NK / terms_NK.clamp(min=1.0).sqrt()
    return torch.where(is_turn_NK, total_NK, torch.nan).to(rewards_NK.dtype)


def weighted_sum(*terms: tuple[float, Tensor]) -> Tensor:
    """Sum of weighted tensors in which NaN adds nothing; NaN where none of those with a weight has a number.

    Example: 0.5 x [1, nan, nan] + 2 x [3, 4, nan] -> [6.5, 8, nan]
    """
    of_weight = [(weight, values) for weight, values in terms if weight != 0]
    if not of_weight:
        return torch.full_like(terms[0][1], torch.nan)
    total = torch.stack([weight * values.nan_to_num(nan=0.0) for weight, values in of_weight]).sum(dim=0)
    missing = torch.stack([values.isnan() for _, values in of_weight]).all(dim=0)
    return torch.where(missing, torch.nan, total)


def clip_scale(zscores_NK: Tensor, beta: float) -> Tensor:
    """Widen the clip range of informative turns and narrow that of uninformative ones.

        c[i,t] = 1 + beta (2 sigmoid(Z[i,t]) - 1)                 between 1 - beta and 1 + beta; 1 without a gain

    Example (beta 0.3): scores [0, nan, 100] -> [1, 1, 1.3]
    """
    scale_NK = 1.0 + beta * (2.0 * zscores_NK.sigmoid() - 1.0)
    return torch.where(zscores_NK.isnan(), 1.0, scale_NK)
