"""A2TGPO in which gains say only how deep a turn is: for a study of what comparing all depths adds."""

from dataclasses import replace

from torch import Tensor

from a2tgpo_trl.credit.a2tgpo import OF_A2TGPO, a2tgpo
from a2tgpo_trl.credit.method import Evidence, Switches, method


@method(**OF_A2TGPO, gain_weight=0.3, gain_normalization="pooled")
def a2tgpo_depth_only(evidence: Evidence, switches: Switches) -> Tensor:
    """As A2TGPO, with each gain replaced by the mean gain of its prompt at that depth. Clip ranges keep real gains."""
    return a2tgpo(replace(evidence, gains_NK=mean_of_depth(evidence.gains_NK, evidence.group_ids_N)), switches)


def mean_of_depth(gains_NK: Tensor, group_ids_N: Tensor) -> Tensor:
    """Return for each turn the mean gain of its prompt's turns at its depth; NaN where a turn has no gain.

    Example (one group): gains [[1, 5], [3, nan]] -> [[2, 5], [2, nan]]
    """
    same_prompt_NN = (group_ids_N.unsqueeze(1) == group_ids_N).to(gains_NK.dtype)
    present_NK = ~gains_NK.isnan()
    sums_NK = same_prompt_NN @ gains_NK.nan_to_num(nan=0.0)
    return sums_NK / (same_prompt_NN @ present_NK.to(gains_NK.dtype)).where(present_NK, gains_NK)
