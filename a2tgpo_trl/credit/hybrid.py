"""The hybrid (arXiv 2604.02869): GTPO's normalised returns, and a little of the outcome on every turn.

    A[i,t] = z( sum over j >= t of gamma^(j-t) r[i,j] )[i,t] + lambda A_outcome[i]

r is the reward of the turn, and on the last turn the outcome as well; lambda is `outcome_weight`.

Meaning: returns tell turns apart, and the outcome keeps all of them pointed the same way.
Edge cases: it is nothing without turn rewards, and refuses to run. A turn alone at its depth lives on the outcome.

Example (the group of `a2tgpo_trl.credit`; gamma 0.9, lambda 0.3):
    R: a 0.81, 0.9, 1; b -0.1, 0; c -0.1
    z: turn 1: 0.81, -0.1, -0.1 -> 1.4142, -0.7071, -0.7071; turn 2: 0.9, 0 -> 1, -1; turn 3 is alone -> 0
    a  1.4142 + 0.3464 = 1.7606, 1.3464, 0.3464
    b  -0.7071 - 0.1732 = -0.8803, -1.1732
    c  -0.8803
"""

from torch import Tensor

from .gtpo import normalized_returns
from .method import Evidence, Switches, method


@method(discount=0.9, outcome_weight=0.3, needs_turn_rewards=True)
def hybrid(evidence: Evidence, switches: Switches) -> Tensor:
    """Advantages of the hybrid."""
    outcome_N = switches.outcome_weight * evidence.outcome_advantages_N
    return normalized_returns(evidence, switches) + outcome_N.unsqueeze(1)
