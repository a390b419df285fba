"""IGPO, in both of its variants: the outcome is one more gain, that of the last turn."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .method import Evidence, Switches, method


@method(
    gain_weight=1.0,
    turn_reward_weight=0.0,
    gain_normalization="pooled",
    beta=0.001,
    without_effect=["failure_shaping"],
)
def igpo(evidence: Evidence, switches: Switches) -> Tensor:
    """IGPO (arXiv 2510.14967, v2): gains and outcomes, normalised separately, summed from a turn to the end.

        A[i,t] = sum over j >= t of gamma^(j-t) (alpha z(gains)[i,j] + rho z(turn rewards)[i,j])
                 + gamma^(last-t) w A_outcome[i]

    z is the z-score among all turns of the prompt's rollouts, whatever their depth ("pooled"). A_outcome is TRL's.

    Meaning: the outcome is one more gain, that of the last turn, and later gains are credited to the turns before.
    Edge cases: a turn without a gain adds nothing, but still gets the sum of later ones.

    Example (the group of `a2tgpo_trl.credit`, no turn rewards; gamma 1):
        z of 1, 2, 3: -1.2247, 0, 1.2247
        a  -1.2247 + 0 + 1.1545 = -0.0702, 0 + 1.1545 = 1.1545, 1.1545
        b  1.2247 - 0.5773 = 0.6475, -0.5773
        c  -0.5773
    """
    groups = evidence.group_ids_N
    gains_NK = switches.gain_scores(evidence).nan_to_num(nan=0.0)
    rewards_NK = switches.normalize(evidence.turn_rewards_NK, groups).nan_to_num(nan=0.0)
    scores_NK = switches.gain_weight * gains_NK + switches.turn_reward_weight * rewards_NK
    scores_NK = scores_NK + evidence.at_last_turn(switches.outcome_weight * evidence.outcome_advantages_N)
    return switches.returns(scores_NK, evidence).nan_to_num(nan=0.0)


@method(
    gain_weight=1.0,
    turn_reward_weight=0.0,
    gain_normalization="pooled",
    beta=0.001,
    without_effect=["gain_groups", "stopped_count", "scale_rewards", "multi_objective_aggregation"],
)
def igpo_joint(evidence: Evidence, switches: Switches) -> Tensor:
    """IGPO's first variant (arXiv 2510.14967): gains and outcomes in one z-score, summed from a turn to the end.

        A[i,t] = sum over j >= t of gamma^(j-t) z(s)[i,j],    s: the gains of the turns, and after them the outcome

    z is taken over all gains and all outcomes of the prompt's rollouts together. With weights, s is
    alpha gain + rho turn reward, and w outcome.

    Meaning: the outcome is one more gain, measured in the same unit.
    Edge cases: many gains, or gains larger than outcomes, hide the outcomes; so `igpo` normalises them separately.

    Example (the group of `a2tgpo_trl.credit`, no turn rewards; gamma 1):
        z of 1, 2, 3, 1, 0, 0 (mean 1.1667, deviation 1.0672): gains -0.1562, 0.7809, 1.7179, outcomes -0.1562, -1.0932
        a  -0.1562 + 0.7809 - 0.1562 = 0.4685, 0.7809 - 0.1562 = 0.6247, -0.1562
        b  1.7179 - 1.0932 = 0.6247, -1.0932
        c  -1.0932
    """
    outcomes_N = torch.where(evidence.num_turns_N > 0, switches.outcome_weight * evidence.outcomes_N, torch.nan)
    together = torch.cat([switches.signal(evidence), outcomes_N.unsqueeze(1)], dim=1)
    floors = pad(switches.signal_floor(evidence), (0, 1))  # outcomes are exact
    scores = switches.normalize(together, evidence.group_ids_N, floors).nan_to_num(nan=0.0)
    scores_NK = scores[:, :-1] + evidence.at_last_turn(scores[:, -1])
    return switches.returns(scores_NK, evidence).nan_to_num(nan=0.0)
