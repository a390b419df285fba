"""GRPO (arXiv 2402.03300): every turn is worth what its rollout was worth.

    A[i,t] = A_outcome[i]

Meaning: what led to a better answer than the group's is done more often, the idle turns in it as well.
Edge cases: in a group of equal outcomes nothing is learnt. The ratio is each token's own; `loss_type` stays TRL's
(`dapo`), so that training is TRL's GRPO bit for bit.

Example (the group of `a2tgpo_trl.credit`): a 1.1545 on all of its turns, b and c -0.5773
    (1 - 1/3) / (0.57735 + 1e-4) = 1.1545, (0 - 1/3) / 0.57745 = -0.5773
"""

from torch import Tensor

from .a2tgpo import a2tgpo
from .method import Evidence, Switches, method


@method(
    turn_reward_weight=0.0,
    rescale_accumulation=True,  # of gains and turn rewards, for who gives them a weight
    without_effect=["failure_shaping"],
)
def grpo(evidence: Evidence, switches: Switches) -> Tensor:
    """Advantages of GRPO: those of A2TGPO, in which gains have no weight."""
    return a2tgpo(evidence, switches)
