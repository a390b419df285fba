"""GiGPO: what a turn and later ones earned, compared with other turns that began in the same state."""

from torch import Tensor

from .method import Evidence, Switches, method
from .scores import above_state_mean


@method(
    discount=0.95,
    beta=0.001,
    needs_states=True,
    without_effect=["gain_normalization", "gain_groups", "stopped_count"],
)
def gigpo(evidence: Evidence, switches: Switches) -> Tensor:
    """GiGPO (arXiv 2505.10978): the outcome of the rollout, plus what a turn earned beyond others from its state.

        A[i,t] = w A_outcome[i] + v S[i,t]
        S[i,t] = (R[i,t] - mean R) / d        over the turns of the prompt that began in the state of (i,t)
        R[i,t] = sum over j >= t of gamma^(j-t) r[i,j]

    r is the reward of the turn, and on the last turn also the outcome. A state is what the policy had just read: the
    prompt, or the results of its last calls (`states.py`). w is `outcome_weight`, v `state_weight`. d is 1 with
    `scale_rewards: none`, else the sample deviation: of these turns with `group`, of all turns with `batch`.
    A_outcome, which is TRL's, follows the same switch, as both terms do in the paper.

    Meaning: if rollouts of a prompt reach the same point and go on differently, the policy does more of what did
    better there, whatever the rest of the rollout was like.
    Edge cases: a turn alone in its state gets only the outcome; if all are, this is GRPO. The first turns of a prompt
    all begin in the prompt. Of two equal outcomes, the one that came sooner is worth more.

    The paper and its code (verl-agent): both compare equal states, and for search also similar ones, from 0.9 on. The
    paper measures similarity by the longest matching subsequence; the code, and `state_likeness` here, by difflib's
    ratio with the first text met of each state. The code's script for search scales by the deviation, as TRL does by
    default, uses a KL weight of 0.001, and charges 0.01 for an action that cannot be read (`turn_rewards:
    {bad_format: -0.01}`); there the charge is also part of the outcome, here only of R.

    Example (the group of `a2tgpo_trl.credit`; gamma 0.95; second turns of a and b begin in the same state):
        R: a 0.9025, 0.95, 1; b -0.1, 0; c -0.1
        S: turn 1: 0.9025, -0.1, -0.1 -> 1.1547, -0.5773, -0.5773; turn 2: 0.95, 0 -> 0.7071, -0.7071; turn 3 is alone
        a  1.1545 + 1.1547 = 2.3092, 1.1545 + 0.7071 = 1.8616, 1.1545
        b  -0.5773 - 0.5773 = -1.1546, -0.5773 - 0.7071 = -1.2844
        c  -1.1546

    Example (the same, `scale_rewards: none`, where A_outcome is 0.6667, -0.3333, -0.3333):
        S: turn 1: 0.9025, -0.1, -0.1 less 0.2342; turn 2: 0.95, 0 less 0.475
        a  0.6667 + 0.6683 = 1.3350, 0.6667 + 0.475 = 1.1417, 0.6667
        b  -0.3333 - 0.3342 = -0.6675, -0.3333 - 0.475 = -0.8083
        c  -0.6675
    """
    assert evidence.states_NK is not None
    rewards_NK = switches.signal(evidence).nan_to_num(nan=0.0) + evidence.at_last_turn(evidence.outcomes_N)
    returns_NK, floor = switches.returns(rewards_NK, evidence), switches.returns_floor(evidence)
    scores_NK = above_state_mean(
        returns_NK, evidence.states_NK, evidence.group_ids_N, switches.scale_rewards, floor
    ).nan_to_num(nan=0.0)
    outcome_N = switches.outcome_weight * evidence.outcome_advantages_N
    return outcome_N.unsqueeze(1) + switches.state_weight * scores_NK
