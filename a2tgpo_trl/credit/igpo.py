"""IGPO (arXiv 2510.14967, v2): gains and outcomes, each normalised on its own, summed up from a turn to the end.

    A[i,t] = sum over j >= t of gamma^(j-t) (alpha z(gains)[i,j] + rho z(turn rewards)[i,j])
             + gamma^(last-t) w A_outcome[i]

z is the z-score among all turns of the prompt's rollouts, whatever their depth ("pooled"). A_outcome is TRL's.

Meaning: the outcome is one more gain, that of the last turn, and what comes later is credited to what led there.
Edge cases: a turn without a gain adds nothing, and has the sum of the later ones all the same.

Example (the group of `a2tgpo_trl.credit`, no turn rewards; gamma 1):
    z of 1, 2, 3: -1.2247, 0, 1.2247
    a  -1.2247 + 0 + 1.1545 = -0.0702, 0 + 1.1545 = 1.1545, 1.1545
    b  1.2247 - 0.5773 = 0.6475, -0.5773
    c  -0.5773
"""

from torch import Tensor

from .method import Evidence, Switches, method


@method(
    gain_weight=1.0,
    turn_reward_weight=0.0,
    gain_normalization="pooled",
    beta=0.001,
    without_effect=["failure_shaping"],
)
def igpo(evidence: Evidence, switches: Switches) -> Tensor:
    """Advantages of IGPO with gains and outcomes normalised separately, its better variant."""
    groups = evidence.group_ids_N
    gains_NK = switches.gain_scores(evidence).nan_to_num(nan=0.0)
    rewards_NK = switches.normalize(evidence.turn_rewards_NK, groups).nan_to_num(nan=0.0)
    scores_NK = switches.gain_weight * gains_NK + switches.turn_reward_weight * rewards_NK
    scores_NK = scores_NK + evidence.at_last_turn(switches.outcome_weight * evidence.outcome_advantages_N)
    return switches.returns(scores_NK, evidence).nan_to_num(nan=0.0)
