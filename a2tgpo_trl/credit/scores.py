"""numbers of turns (N,K), groups (N,) -> z-scores, discounted sums and clip scale (N,K).

N rollouts of all ranks, K turns. NaN means "this turn has none", in inputs and outputs: for gains, the answer turn, a
turn that was cut off, a turn whose probe was not finite, and columns beyond a rollout's last turn. Zero is an ordinary
number. A cell is one turn index of one prompt, or one state of it (`states.py`; -1 is no state).

Statistics are computed in at least float32 and returned in the dtype of the input.
"""

import torch
from torch import Tensor


# The population z-score of the released A2TGPO code: (x - mean) / (sqrt(var + VARIANCE_FLOOR) + SCALE_FLOOR).
VARIANCE_FLOOR = 1e-8
SCALE_FLOOR = 1e-6


Floor = float | Tensor  # for all entries, or for each


class _Cells:
    """The entries of a tensor, each compared with those that have the same cell number. NaN is no entry.

    All tensors in it are flat, and at least float32.
    """

    def __init__(self, values_NK: Tensor, cell_NK: Tensor, num_cells: int, floor: Floor):
        values, self._cell = values_NK.flatten(), cell_NK.flatten()
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        self._like, self.present = values_NK, ~wide.isnan()
        # Subtracting one member of the cell first keeps the digits when gains are large and close together, and makes
        # a cell of equal gains exactly zero.
        lowest = wide.new_full((num_cells,), torch.inf).scatter_reduce(
            0, self._cell, wide.masked_fill(~self.present, torch.inf), reduce="amin"
        )
        shifted = torch.where(self.present, wide - lowest[self._cell], 0.0)
        count = wide.new_zeros(num_cells).scatter_add(0, self._cell, self.present.to(wide.dtype)).clamp(min=1.0)
        self._count_of_cells, self.count = count, count[self._cell]
        self.centred = torch.where(self.present, shifted - self.mean(shifted), 0.0)
        floor = torch.as_tensor(floor, dtype=wide.dtype, device=wide.device)
        self._floors = torch.where(self.present, floor.expand_as(values_NK).flatten(), 0.0)
        self.noise = self.mean(self._floors.square())

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of each entry's cell."""
        sums = x.new_zeros(len(self._count_of_cells)).scatter_add(0, self._cell, x)
        return (sums / self._count_of_cells)[self._cell]

    def table(self, scores: Tensor) -> Tensor:
        """Scores in the input's shape and dtype; 0 where an entry is no further from the mean than its floor."""
        # Rounding of entries also moves their mean, by less if there are more of them.
        off = self.centred.abs() > torch.maximum(self._floors, (self.noise / self.count).sqrt())
        scores = torch.where(off, scores, 0.0)
        # A turn alone in its cell has nothing to be compared with and gets 0, so only its outcome credits it.
        scores = torch.where(self.count > 1, scores, 0.0)
        return torch.where(self.present, scores, torch.nan).to(self._like.dtype).view_as(self._like)


def _zscore(values_NK: Tensor, cell_NK: Tensor, num_cells: int, floor: Floor) -> Tensor:
    """Population z-score of the entries of a tensor among those with the same cell number; NaN stays NaN."""
    cells = _Cells(values_NK, cell_NK, num_cells, floor)
    variance = cells.mean(cells.centred.square()) + cells.noise.clamp(min=VARIANCE_FLOOR)
    return cells.table(cells.centred / (variance.sqrt() + SCALE_FLOOR))


def turn_group_zscore(
    gains_NK: Tensor, group_ids_N: Tensor, floor: Floor = 0.0, stopped_NK: Tensor | None = None
) -> Tensor:
    """Compare each turn with the turns at the same depth of the same prompt.

        Z[i,t] = (IG[i,t] - mean) / (sqrt(var + f^2) + 1e-6)      over the rollouts of i's group with a gain at t
        Z[i,t] = 0                                                where |IG[i,t] - mean| <= floor

    f is the floor, at least 1e-4: how much rounding may move a gain (`information_gain/rounding.py`), 0 for exact
    numbers. Z is 0 in a cell of one member or of equal gains. If rounding moves IG - mean by no more than the floor,
    the sign of Z does not depend on it: what is above the floor in one precision is on the same side of the mean in
    another.

    With `stopped_NK`, rollouts that had stopped before a depth count there with a gain of 0, which is what they gained
    by not calling. The z-scores of the others then say both whether to call and which call was better.

    Example (one group): gains [[1, 5], [3, nan]] -> [[-1, 0], [1, nan]]; 5 is alone at its depth.
    Example (floor 0.1): gains [[1, 1], [1.15, 3]] -> [[0, -0.995], [0, 0.995]]: 0.075 from the mean is nothing, and
        1 from the mean is 1 / sqrt(1 + 0.01)
    Example (the second has stopped before depth 2): gains [[1, 5], [3, nan]] -> [[-1, 1], [1, nan]]: 5 beside 0
    """
    groups, group_N = group_ids_N.unique(return_inverse=True)
    num_turns = gains_NK.size(1)
    cell_NK = group_N.unsqueeze(1) * num_turns + torch.arange(num_turns, device=gains_NK.device)
    if stopped_NK is None:
        return _zscore(gains_NK, cell_NK, len(groups) * num_turns, floor)
    floor_NK = torch.as_tensor(floor, dtype=gains_NK.dtype, device=gains_NK.device).expand_as(gains_NK)
    counted_NK = gains_NK.masked_fill(stopped_NK, 0.0)
    scores_NK = _zscore(counted_NK, cell_NK, len(groups) * num_turns, floor_NK.masked_fill(stopped_NK, 0.0))
    return scores_NK.masked_fill(stopped_NK, torch.nan)


def pooled_zscore(gains_NK: Tensor, group_ids_N: Tensor, floor: Floor = 0.0) -> Tensor:
    """Compare each turn with all turns of all rollouts of the same prompt, whatever their depth (IGPO).

    The floor is that of `turn_group_zscore`. If each entry has its own, the deviation is widened by the mean of their
    squares, and even an exact entry must be further from the mean than rounding moves the mean:
    sqrt(sum of f^2) / members.

    Example (one group): gains [[1, 5], [3, nan]] -> mean 3, std 1.633 -> [[-1.2247, 1.2247], [0, nan]]
    Example (floors 0.12 and 0): gains 0.05 and -0.05 beside outcomes 0.1 and -0.1 -> variance 0.00625, mean square of
        the floors 0.0072 -> [[0, 0.8622], [0, -0.8622]]; rounding moves the mean by sqrt(2 x 0.12^2) / 4 = 0.042
    """
    groups, group_N = group_ids_N.unique(return_inverse=True)
    cell_NK = group_N.unsqueeze(1).expand_as(gains_NK)
    return _zscore(gains_NK, cell_NK, len(groups), floor)


def no_zscore(gains_NK: Tensor, group_ids_N: Tensor, floor: Floor = 0.0) -> Tensor:
    """Leave gains in their own unit, as the ablation without normalisation. Effects of rounding stay small."""
    return gains_NK


NORMALIZATIONS = {"turn_group": turn_group_zscore, "pooled": pooled_zscore, "none": no_zscore}


# ---- turns that began in the same state


def state_cells(states_NK: Tensor, group_ids_N: Tensor) -> tuple[Tensor, int]:
    """Return a cell number for each state of each prompt, and how many; arbitrary for turns without a state."""
    groups, group_N = group_ids_N.unique(return_inverse=True)
    most = int(states_NK.max()) + 1 if states_NK.numel() else 0
    return group_N.unsqueeze(1) * max(most, 1) + states_NK.clamp(min=0), len(groups) * max(most, 1)


def state_group_sizes(present_NK: Tensor, states_NK: Tensor, group_ids_N: Tensor) -> Tensor:
    """Return how many present turns began in each turn's state, itself included; 0 for turns that are not present."""
    there_NK = present_NK & (states_NK >= 0)
    cell_NK, num_cells = state_cells(states_NK, group_ids_N)
    sizes = torch.zeros(num_cells, dtype=torch.long, device=states_NK.device)
    sizes = sizes.scatter_add(0, cell_NK.flatten(), there_NK.flatten().long())
    return sizes[cell_NK].masked_fill(~there_NK, 0)


def state_group_zscore(gains_NK: Tensor, states_NK: Tensor, group_ids_N: Tensor, floor: Floor = 0.0) -> Tensor:
    """Compare each turn with those of the same prompt that began in the same state, at any depth.

    If no other turn with a gain has its state, it is compared with all turns at its depth, as by `turn_group_zscore`.
    The floor is the same too.

    Example (one group): gains [[1, 5, nan], [3, 2, nan], [4, nan, nan]], states [[0, 1, 2], [0, 0, 1], [0, 3, -1]] ->
        state 0 has 1, 3, 2, 4: mean 2.5, deviation 1.1180; the 5 is alone in state 1, and compared with the 2 at its
        depth -> [[-1.3416, 1, nan], [0.4472, -0.4472, nan], [1.3416, nan, nan]]
    """
    cell_NK, num_cells = state_cells(states_NK, group_ids_N)
    has_mates_NK = state_group_sizes(~gains_NK.isnan(), states_NK, group_ids_N) > 1
    of_state_NK = _zscore(gains_NK.masked_fill(states_NK < 0, torch.nan), cell_NK, num_cells, floor)
    return torch.where(has_mates_NK, of_state_NK, turn_group_zscore(gains_NK, group_ids_N, floor))


def above_state_mean(
    returns_NK: Tensor, states_NK: Tensor, group_ids_N: Tensor, scale: str, floor: Floor = 0.0
) -> Tensor:
    """Return what a turn earned beyond the mean of the prompt's turns that began in the same state (GiGPO).

        S[i,t] = (R[i,t] - mean) / d          over the turns of i's group with the state of (i,t); 0 for one alone
        d = 1                                 where scale is "none"
        d = sample deviation + 1e-6           of those turns where it is "group", of all turns where it is "batch"

    The floor is added to the variance as in `turn_group_zscore`. A turn without a state gets NaN.

    Example (one group, all in one state): returns [[0.9025], [-0.1], [-0.1]] -> mean 0.2342, deviation 0.5788 ->
        [[1.1547], [-0.5774], [-0.5774]]; with "none" [[0.6683], [-0.3342], [-0.3342]]
    """
    cell_NK, num_cells = state_cells(states_NK, group_ids_N)
    cells = _Cells(returns_NK.masked_fill(states_NK < 0, torch.nan), cell_NK, num_cells, floor)
    if scale == "none":
        return cells.table(cells.centred)
    if scale == "batch":
        all_returns = returns_NK.flatten()[cells.present].to(cells.centred.dtype)
        variance = all_returns.var() if len(all_returns) > 1 else cells.centred.new_zeros(())
    else:
        variance = cells.mean(cells.centred.square()) * cells.count / (cells.count - 1).clamp(min=1.0)
    variance = variance + cells.noise.clamp(min=VARIANCE_FLOOR)
    return cells.table(cells.centred / (variance.sqrt() + SCALE_FLOOR))


# ---- over the turns of a rollout


def discounted_sum(scores_NK: Tensor, gamma: float, rescale: bool) -> Tensor:
    """Credit each turn that has a score with its score and the discounted scores of later turns.

        D[i,t] = sum_{j>=t} gamma^(j-t) Z[i,j] / sqrt(n)          n = number of terms if rescale, else 1

    Turns without a score add no term. Dividing by the root keeps the variance of early turns, which sum many terms,
    equal to that of late ones.

    Example (gamma 1): scores [2, nan, 1] -> [3/sqrt(2), nan, 1]
    """
    return returns(scores_NK, ~scores_NK.isnan(), gamma, rescale)


def returns(rewards_NK: Tensor, is_turn_NK: Tensor, gamma: float, rescale: bool) -> Tensor:
    """Return what a turn and later ones earned, discounted; NaN where a rollout has no such turn.

    This is `discounted_sum`, except that a turn without a reward still gets the sum of later ones.

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
    """Return a weighted sum in which NaN adds nothing; NaN where no tensor with a weight has a number.

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
