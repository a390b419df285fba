"""GTPO and the hybrid: what a turn and later ones earned, first summed and then compared with other turns."""

from torch import Tensor

from .method import Evidence, Switches, method


def normalized_returns(evidence: Evidence, switches: Switches) -> Tensor:
    """Return normalised discounted sums of turn rewards (and of weighted gains), with the outcome at the end."""
    rewards_NK = switches.signal(evidence).nan_to_num(nan=0.0) + evidence.at_last_turn(evidence.outcomes_N)
    returns_NK, floor = switches.returns(rewards_NK, evidence), switches.returns_floor(evidence)
    return switches.normalize(returns_NK, evidence.group_ids_N, floor).nan_to_num(nan=0.0)


@method(
    discount=0.9,
    failure_shaping=0.5,
    turn_rewards={"bad_format": -0.1},
    without_effect=["gain_groups", "stopped_count", "outcome_weight", "scale_rewards", "multi_objective_aggregation"],
)
def gtpo(evidence: Evidence, switches: Switches) -> Tensor:
    """GTPO (arXiv 2511.14846): rewards per turn and the outcome, summed from a turn to the end, then normalised.

        A[i,t] = z(R)[i,t],    R[i,t] = sum over j >= t of gamma^(j-t) r[i,j]

    r is the reward of the turn, and on the last turn also the outcome. z is the z-score among the turns at the same
    depth of the same prompt, or (`gain_normalization: pooled`) among all its turns; the sources leave open which is
    meant.

    A failed rollout is also worth something: `failure_shaping` times the similarity of what it tried to what the
    passing rollouts of its group did (`shaping.py`).

    Meaning: a turn is worth what came of it, and more if that came sooner.
    Edge cases: with "turn_group" a turn alone at its depth has nothing to be compared with, and gets 0.

    Example (the group of `a2tgpo_trl.credit`; gamma 0.9; a passes, what b tried is like it to 0.6, c tried nothing):
        outcomes: a 1, b 0.5 x 0.6 = 0.3, c 0
        R: a 0.81, 0.9, 1; b -0.1 + 0.9 x 0.3 = 0.17, 0.3; c -0.1
        z: turn 1: 0.81, 0.17, -0.1 -> 1.3540, -0.3232, -1.0308; turn 2: 0.9, 0.3 -> 1, -1; turn 3 is alone -> 0
    """
    return normalized_returns(evidence, switches)


@method(discount=0.9, outcome_weight=0.3, needs_turn_rewards=True, without_effect=["gain_groups", "stopped_count"])
def hybrid(evidence: Evidence, switches: Switches) -> Tensor:
    """The hybrid (arXiv 2604.02869): GTPO's normalised returns, plus a little of the outcome on every turn.

        A[i,t] = z( sum over j >= t of gamma^(j-t) r[i,j] )[i,t] + lambda A_outcome[i]

    r is the reward of the turn, and on the last turn also the outcome; lambda is `outcome_weight`.

    Meaning: returns distinguish turns, and the outcome gives all of them the same direction.
    Edge cases: without turn rewards it refuses to run. A turn alone at its depth gets only the outcome.

    Example (the group of `a2tgpo_trl.credit`; gamma 0.9, lambda 0.3):
        R: a 0.81, 0.9, 1; b -0.1, 0; c -0.1
        z: turn 1: 0.81, -0.1, -0.1 -> 1.4142, -0.7071, -0.7071; turn 2: 0.9, 0 -> 1, -1; turn 3 is alone -> 0
        a  1.4142 + 0.3464 = 1.7606, 1.3464, 0.3464
        b  -0.7071 - 0.1732 = -0.8803, -1.1732
        c  -0.8803
    """
    outcome_N = switches.outcome_weight * evidence.outcome_advantages_N
    return normalized_returns(evidence, switches) + outcome_N.unsqueeze(1)
