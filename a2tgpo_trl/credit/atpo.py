"""ATPO (arXiv 2601.04767): GRPO with one ratio for each turn.

    A[i,t] = A_outcome[i]

Meaning: a turn is what the policy decides on at once, so it is a turn that is clipped. Of AT2PO's parts this ratio
alone makes the largest step of its ablation (average EM 45.42 to 47.75). Its tree of rollouts is not here.
Edge cases: a rollout of one turn has GSPO's ratio. Each rollout weighs the same (`loss_type` `grpo`).

Example (the group of `a2tgpo_trl.credit`): a 1.1545 on all of its turns, b and c -0.5773
    (1 - 1/3) / (0.57735 + 1e-4) = 1.1545, (0 - 1/3) / 0.57745 = -0.5773
"""

from torch import Tensor

from .a2tgpo import a2tgpo
from .method import Evidence, Switches, method


@method(
    turn_reward_weight=0.0,
    rescale_accumulation=True,  # of gains and turn rewards, for who gives them a weight
    importance_sampling_level="turn",
    epsilon=3e-3,
    epsilon_high=4e-3,
    loss_type="grpo",
    without_effect=["failure_shaping"],
)
def atpo(evidence: Evidence, switches: Switches) -> Tensor:
    """Advantages of ATPO: those of A2TGPO, in which gains have no weight."""
    return a2tgpo(evidence, switches)
