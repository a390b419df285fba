"""MT-GRPO (as in arXiv 2604.02869): turn rewards, compared with others at the same depth, beside the outcome.

    A[i,t] = sum over j >= t of z(r[i,j]) + A_outcome[i]                  z within the turns at depth j of the prompt

Meaning: a turn is credited with its own reward and those that it made possible.
Edge cases: it is nothing without turn rewards, and refuses to run. A turn alone at its depth adds 0. A turn without a
reward of its own adds nothing, and has the sum of the later ones all the same.

Example (the group of `a2tgpo_trl.credit`):
    z: turn 1: 0, -0.1, -0.1 -> 1.4142, -0.7071, -0.7071; turn 2: 0, 0 -> 0, 0; turn 3 is alone -> 0
    a  1.4142 + 0 + 0 + 1.1545 = 2.5687, 1.1545, 1.1545
    b  -0.7071 + 0 - 0.5773 = -1.2843, -0.5773
    c  -0.7071 - 0.5773 = -1.2843

Example (the same group, where second turns alone have a reward: a -, 1, -; b -, 0; c -):
    z: turn 2: 1, 0 -> 1, -1, which the first turns have as well
    a  1 + 1.1545 = 2.1545, 2.1545, 1.1545
    b  -1 - 0.5773 = -1.5773, -1.5773
    c  -0.5773
"""

from torch import Tensor

from .a2tgpo import a2tgpo
from .method import Evidence, Switches, method


@method(needs_turn_rewards=True, without_effect=["failure_shaping"])
def mt_grpo(evidence: Evidence, switches: Switches) -> Tensor:
    """Advantages of MT-GRPO: those of A2TGPO with turn rewards in place of gains, and no rescaling."""
    return a2tgpo(evidence, switches)
