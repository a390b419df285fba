"""GSPO (arXiv 2507.18071): GRPO with one ratio for the whole rollout.

    A[i,t] = A_outcome[i]

Meaning: a rollout is rewarded whole, so it is clipped whole: its ratio is the geometric mean over all its tokens.
Edge cases: such a mean moves little, so the clip range is a hundredth of GRPO's; each rollout weighs the same, however
long it is (`loss_type` `grpo`). With a KL term, `use_bias_correction_kl` weighs each token's KL by a ratio that has
the value of TRL's, and the gradient of the token instead of the mean's.

Example (the group of `a2tgpo_trl.credit`): a 1.1545 on all of its turns, b and c -0.5773
    (1 - 1/3) / (0.57735 + 1e-4) = 1.1545, (0 - 1/3) / 0.57745 = -0.5773
"""

from torch import Tensor

from .a2tgpo import a2tgpo
from .method import Evidence, Switches, method


@method(
    turn_reward_weight=0.0,
    rescale_accumulation=True,  # of gains and turn rewards, for who gives them a weight
    importance_sampling_level="sequence",
    epsilon=3e-4,
    epsilon_high=4e-4,
    loss_type="grpo",
    without_effect=["failure_shaping"],
)
def gspo(evidence: Evidence, switches: Switches) -> Tensor:
    """Advantages of GSPO: those of A2TGPO, in which gains have no weight."""
    return a2tgpo(evidence, switches)
