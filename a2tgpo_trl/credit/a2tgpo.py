"""A2TGPO, and the methods that are the same function with other switches: GRPO, GSPO, ATPO and MT-GRPO.

The A2TGPO paper and its released code differ, and the default here, `a2tgpo`, follows neither in full:

                              paper                     code                    a2tgpo        switch
    value of a context        probability               log-probability         as the code   gain_measure
    first turn                gain over the question    has no gain             as the paper  first_gain
    last result               is in the last gain       is not                  as the paper  last_gain
    weight of the gain        1                         0.3                     as the code   gain_weight
    loss                      mean of rollouts' means   mean over all tokens    as the code   loss_type: grpo, dapo
    gradient of the ratio     of the turn's mean        of each token           as the code
    broken format             reward -1 in place of 1   the same                0.1 x format  reward_weights

`a2tgpo_paper` and `a2tgpo_code` follow the first two columns as far as there are switches.
"""

from typing import Any

import torch
from torch import Tensor

from ..information_gain.rounding import GAIN_FLOOR
from .method import Evidence, Switches, gain_clip_scale, method
from .scores import Floor, discounted_sum


# How gains and turn rewards are compared and summed, which matters only to those that have a weight.
OF_SCORES = ("gain_normalization", "discount", "rescale_accumulation")

# What paper and code agree on.
OF_A2TGPO: dict[str, Any] = {
    "turn_reward_weight": 0.0,
    "clip_adaptation": 0.3,
    "rescale_accumulation": True,
    "importance_sampling_level": "turn",
    "epsilon": 3e-3,
    "epsilon_high": 4e-3,
    "without_effect": ["failure_shaping"],
    "needs_weight": OF_SCORES,
}


def outcome_plus_scores(evidence: Evidence, switches: Switches) -> Tensor:
    """The weighted sum of outcome, compared gains and compared turn rewards, of which a method may use only some."""
    advantages_NK = (switches.outcome_weight * evidence.outcome_advantages_N).unsqueeze(1)
    if switches.gain_weight > 0:
        scores_NK = switches.gain_scores(evidence)
        credit_NK = discounted_sum(scores_NK, switches.discount, switches.rescale_accumulation)
        advantages_NK = advantages_NK + switches.gain_weight * credit_NK.nan_to_num(nan=0.0)
    if switches.turn_reward_weight > 0:
        scores_NK = switches.normalize(evidence.turn_rewards_NK, evidence.group_ids_N)
        credit_NK = switches.returns(scores_NK, evidence)
        advantages_NK = advantages_NK + switches.turn_reward_weight * credit_NK.nan_to_num(nan=0.0)
    return advantages_NK.expand_as(evidence.gains_NK)


@method(**OF_A2TGPO, gain_weight=0.3)
def a2tgpo(evidence: Evidence, switches: Switches) -> Tensor:
    """A2TGPO (arXiv 2605.06200): each turn's gain, compared with others at its depth, plus the outcome.

        A[i,t] = w A_outcome[i] + alpha D(Z(gains))[i,t] + rho D(Z(turn rewards))[i,t]

    Z is the z-score among the turns at the same depth of the same prompt. D is the discounted sum over this turn and
    later ones, divided by the square root of its number of terms. w is `outcome_weight`, alpha `gain_weight`, rho
    `turn_reward_weight` (0 unless you set it: the paper has no turn rewards). Each signal is normalised separately, so
    their units do not matter.

    Meaning: if a turn came closer to the answer than other rollouts did at this point, the policy does more of it.
    Differences that rounding explains (`Evidence.gain_floor`) do not count.
    Edge cases: the answer turn, and any other without a gain, gets only the outcome; so does a turn alone at its
    depth. A turn without a turn reward gets those of later turns: what is paid at the end was earned on the way.

    Example (the group of `a2tgpo_trl.credit`, no turn rewards; alpha 0.3, gamma 1):
        Z: turn 1 of a and b: 1, 3 -> -1, 1; turn 2 of a is alone -> 0
        D: a (-1 + 0)/sqrt(2) = -0.7071, then 0; b 1
        a  1.1545 - 0.3 x 0.7071 = 0.9424, 1.1545 + 0, 1.1545
        b  -0.5773 + 0.3 = -0.2773, -0.5773
        c  -0.5773

    Example (rho 1 and no gains: the group's turn rewards are paid at the end, a -, -, 1, b -, 0, c 0, "pooled"):
        z of 1, 0, 0: 1.4142, -0.7071, -0.7071; each is the one term of all turns before it, so sqrt(1)
        a  1.1545 + 1.4142 = 2.5687 on all turns;  b, c  -0.5773 - 0.7071 = -1.2843
    """
    return outcome_plus_scores(evidence, switches)


@method(**OF_A2TGPO, gain_weight=1.0, gain_measure="probability", loss_type="grpo")
def a2tgpo_paper(evidence: Evidence, switches: Switches) -> Tensor:
    """A2TGPO as in its paper (arXiv 2605.06200): gains of probability, without a weight.

        A[i,t] = A_outcome[i] + D(Z(gains))[i,t]

    Meaning: as in A2TGPO; a turn that gained much more than others can outweigh a wrong answer.
    Edge cases: as in A2TGPO. Each rollout has the same weight, whatever its length (`loss_type` `grpo`).

    Example (the group of `a2tgpo_trl.credit`; D as in A2TGPO: a -0.7071, 0; b 1):
        a  1.1545 - 0.7071 = 0.4474, 1.1545, 1.1545
        b  -0.5773 + 1 = 0.4227, -0.5773
        c  -0.5773
    """
    return outcome_plus_scores(evidence, switches)


@method(**OF_A2TGPO, gain_weight=0.3, first_gain=False, last_gain=False)
def a2tgpo_code(evidence: Evidence, switches: Switches) -> Tensor:
    """A2TGPO as in the released code: neither the first turn nor the last that a tool answered has a gain.

        A[i,t] = A_outcome[i] + 0.3 D(Z(gains))[i,t]          only gains of the turns between these two

    Meaning: as in A2TGPO, for what happens between the first result and the last. A rollout that calls tools in three
    turns has a single gain; one with fewer gets only the outcome.
    Edge cases: as in A2TGPO. The gains passed in already lack those of first and last turns (`first_gain`,
    `last_gain`).

    Example (the group of `a2tgpo_trl.credit`, whose rollouts call tools in two turns at most): all turns get only the
        outcome: a 1.1545, b and c -0.5773
    """
    return outcome_plus_scores(evidence, switches)


# What has no weight here is still there for those who give it one, with A2TGPO's way of summing it up.
OUTCOME_ALONE: dict[str, Any] = {
    "turn_reward_weight": 0.0,
    "rescale_accumulation": True,
    "without_effect": ["failure_shaping"],
    "needs_weight": OF_SCORES,
}


@method(**OUTCOME_ALONE)
def grpo(evidence: Evidence, switches: Switches) -> Tensor:
    """GRPO (arXiv 2402.03300): every turn gets the advantage of its rollout.

        A[i,t] = A_outcome[i]

    Meaning: what led to a better answer than the group's is done more often, idle turns included.
    Edge cases: a group of equal outcomes teaches nothing. Each token has its own ratio; `loss_type` stays TRL's
    (`dapo`), so training is TRL's GRPO bit for bit.

    Example (the group of `a2tgpo_trl.credit`): a 1.1545 on all of its turns, b and c -0.5773
        (1 - 1/3) / (0.57735 + 1e-4) = 1.1545, (0 - 1/3) / 0.57745 = -0.5773
    """
    return outcome_plus_scores(evidence, switches)


@method(**OUTCOME_ALONE, importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4, loss_type="grpo")
def gspo(evidence: Evidence, switches: Switches) -> Tensor:
    """GSPO (arXiv 2507.18071): GRPO with one ratio for the whole rollout.

        A[i,t] = A_outcome[i]

    Meaning: a rollout is rewarded as a whole, so it is clipped as a whole: its ratio is the geometric mean over all
    its tokens.
    Edge cases: such a mean moves little, so the clip range is far below GRPO's. Each rollout has the same weight,
    whatever its length (`loss_type` `grpo`). With a KL term, `use_bias_correction_kl` weights each token's KL by a
    ratio with the value of TRL's, but with the token's gradient instead of the mean's.

    Example (the group of `a2tgpo_trl.credit`): as in GRPO, a 1.1545 on all of its turns, b and c -0.5773
    """
    return outcome_plus_scores(evidence, switches)


@method(**OUTCOME_ALONE, importance_sampling_level="turn", epsilon=3e-3, epsilon_high=4e-3, loss_type="grpo")
def atpo(evidence: Evidence, switches: Switches) -> Tensor:
    """ATPO (arXiv 2601.04767): GRPO with one ratio for each turn.

        A[i,t] = A_outcome[i]

    Meaning: a turn is one decision of the policy, so each turn is clipped as a whole. Of AT2PO's parts, this ratio
    alone is the largest step of its ablation (average EM 45.42 to 47.75). Its tree of rollouts is not implemented.
    Edge cases: a rollout of one turn has GSPO's ratio. Each rollout has the same weight (`loss_type` `grpo`).

    Example (the group of `a2tgpo_trl.credit`): as in GRPO, a 1.1545 on all of its turns, b and c -0.5773
    """
    return outcome_plus_scores(evidence, switches)


@method(needs_turn_rewards=True, without_effect=["failure_shaping"], needs_weight=OF_SCORES)
def mt_grpo(evidence: Evidence, switches: Switches) -> Tensor:
    """MT-GRPO (as in arXiv 2604.02869): turn rewards, compared with others at the same depth, plus the outcome.

        A[i,t] = sum over j >= t of z(r[i,j]) + A_outcome[i]          z within the turns at depth j of the prompt

    Meaning: a turn is credited with its own reward and those that it made possible.
    Edge cases: without turn rewards it refuses to run. A turn alone at its depth adds 0. A turn without its own
    reward adds nothing, but still gets the sum of the later ones.

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
    return outcome_plus_scores(evidence, switches)


def a2tgpo_credit(
    gains_NK: Tensor,
    group_ids_N: Tensor,
    outcome_advantages_N: Tensor,
    *,
    alpha: float,
    gamma: float,
    beta: float,
    normalization: str = "turn_group",
    rescale: bool = True,
    gain_floor: Floor = GAIN_FLOOR,
) -> tuple[Tensor, Tensor]:
    """Advantages and clip scale of every turn (A2TGPO, arXiv 2605.06200).

        A[i,t] = A_outcome[i] + alpha D[i,t]      D = discounted_sum(Z): turns with a gain
        A[i,t] = A_outcome[i]                     the answer turn and every other turn without one
        c[i,t] = clip_scale(Z[i,t])               from Z, not from its sum

    Args:
        gains_NK: information gain of each turn, NaN if there is none.
        group_ids_N: the prompt each rollout belongs to; any integers, in any order.
        outcome_advantages_N: advantage of each rollout from its reward.
        alpha: weight of the gains alongside the outcome.
        gamma: discount per turn.
        beta: how far the clip range follows the gain.
        normalization: "turn_group" (A2TGPO), "pooled" (IGPO) or "none".
        rescale: divide accumulated scores by the square root of their number.
        gain_floor: how far gains may differ through rounding, for all turns or for each (N,K).

    Example: gains [[1, nan], [3, nan]], one group, outcomes [0, 1], alpha 0.3, beta 0.3: scores -1 and 1, so
    advantages [[-0.3, 0], [1.3, 1]] and clip scales [[0.861, 1], [1.139, 1]].
    """
    switches = Switches(
        gain_weight=alpha,
        turn_reward_weight=0.0,
        discount=gamma,
        gain_normalization=normalization,
        rescale_accumulation=rescale,
        clip_adaptation=beta,
    )
    evidence = Evidence(
        gains_NK=gains_NK,
        turn_rewards_NK=torch.full_like(gains_NK, torch.nan),
        outcomes_N=outcome_advantages_N,
        outcome_advantages_N=outcome_advantages_N,
        num_turns_N=torch.full_like(group_ids_N, gains_NK.size(1)),
        group_ids_N=group_ids_N,
        gain_floor=gain_floor,
    )
    return a2tgpo(evidence, switches), gain_clip_scale(evidence, switches)
