"""gains, turn rewards, outcomes (N,K), groups (N,) -> advantages (N,K) and clip scale (N,K).

One word names the method (`credit: gtpo`, `--credit grpo`); task, rollouts and code stay the same.

    credit       credit of a turn                                                   ratio     clip range below, above 1
    grpo         outcome advantage of its rollout: TRL's GRPO, bit for bit          token     0.2, 0.2
    gspo         the same                                                           sequence  3e-4, 4e-4
    atpo         the same                                                           turn      3e-3, 4e-3
    igpo         gains and outcomes, each normalised over all turns of the prompt,  token     0.2, 0.2; KL 0.001
                 summed up from the turn on
    igpo_joint   the same, normalised together                                      token     0.2, 0.2; KL 0.001
    gtpo         turn rewards and outcome, discounted by 0.9 from the turn on,      token     0.2, 0.2
                 then normalised; failures shaped
    mt_grpo      turn rewards, normalised by depth, summed up, beside the outcome   token     0.2, 0.2
    hybrid       the returns of gtpo, without shaping, and 0.3 times the outcome    token     0.2, 0.2
    gigpo        outcome advantage, and the discounted return of the turn less     token     0.2, 0.2; KL 0.001
                 the mean of those from the same state
    a2tgpo       gains, normalised by depth, summed up and rescaled, beside the     turn      3e-3, 4e-3, scaled by
                 outcome                                                                      the gain
    a2tgpo_paper the same, gains of probability, with the weight 1 in place of 0.3  turn      the same
    a2tgpo_code  a2tgpo, whose first turns have no gain                             turn      the same

Which to take, `recipes/study/README.md` says for one generated world, with figures: there igpo, and a2tgpo with
`gain_normalization: pooled` and a wider clip range, learn faster than grpo; a2tgpo as it is does not.

Each sets the switches (`A2TGPOConfig`) to its paper's values; what you set wins, and what a method never reads is
refused. `loss_type` is "grpo" for gspo, atpo and a2tgpo_paper, else "dapo"; gtpo has a turn reward of its own,
{bad_format: -0.1}; mt_grpo and hybrid need some of yours. A method's docstring has its formula and an example by hand:
`help(find_method("gtpo"))`. `a2tgpo compare RECIPE --credit grpo a2tgpo --seeds 0 1 2` trains several with several
seeds, and compares their held-out learning curves. What another method would have made of rollouts that a run has
recorded (`record_every`) says `recredited(records, "igpo")` of `a2tgpo_trl.recredit`.

A method of your own is a function in a file, `credit: my_credit.py:last_tool_turn`:

    import torch

    from a2tgpo_trl.credit import method


    @method(importance_sampling_level="turn", epsilon=3e-3, epsilon_high=4e-3, without_effect=["discount"])
    def last_tool_turn(evidence, switches):
        turns = torch.arange(evidence.gains_NK.size(1), device=evidence.gains_NK.device)
        is_last_NK = turns == evidence.num_turns_N.unsqueeze(1) - 2
        return is_last_NK * evidence.outcome_advantages_N.unsqueeze(1)

The decorator holds the method's own values of settings; what it does not name is GRPO's. `evidence` has `gains_NK`
(NaN where a turn has none, and everywhere unless `gain_weight` or `clip_adaptation` is above 0), `turn_rewards_NK`
(weighted sum, NaN where a turn has none), `outcomes_N` (NaN where nobody scored the rollout), `outcome_advantages_N`
(what TRL makes of it), `num_turns_N` and `is_turn_NK` (the answer turn included; 0 for a rollout out of the loss),
`group_ids_N` and `gain_floor` (what gains may differ by through rounding), and where the decorator says
`needs_states=True`, `states_NK`. `switches` has the settings that methods read; `switches.gain_scores(evidence)` are
the normalised gains.

Rewards of single turns read the record of a rollout and return one number a turn. A recipe says what each is worth,
a script hands functions over as `turn_reward_funcs`:

    turn_rewards: {bad_format: -0.1, duplicate_call: -0.05, my_rewards.py:progress: 1.0}

Ready-made are bad_format (a call that cannot be read or made, text that was cut, a first turn without a call),
failed_call, duplicate_call, read_only, state_changing (tools say `@tool(changes_state=True)`) and environment (the
attribute `turn_reward` of an environment). `turn_reward_weight` says what is learnt from them: 1 with gtpo, mt_grpo,
hybrid and methods of your own, 0 with the others, which only log them until you set it. The mapping may stand in a
file, below a key turn_rewards (`turn_rewards: weights.yaml`).

A state is what the policy had just read when it began a turn: the prompt, or the results of its last calls.
`state_likeness` says from which ratio of matching characters on two are the same one: 1, equal ones only; GiGPO takes
0.9 for results of a search. gigpo compares what turns of a prompt earned from the same state on. With `gain_groups:
state`, gains are compared so, and by depth where a state has one turn. Records have the numbers of states; the log has
the share of turns that are alone in theirs (`states/alone`), which such a comparison tells nothing of.

gtpo gives a failed rollout a share of what it lacks to `success_reward`: `failure_shaping` (0.5) times the likeness of
what it tried to what the passing rollouts of its group did, by a small sentence encoder if one is on the machine, else
by hashed n-grams of tokens (`shaping_embedding`).

    scores.py         z-scores, discounted sums, clip scale: what methods are made of
    method.py         the signature that methods share, and the settings that a paper gives to one
    a2tgpo.py         A2TGPO, and GRPO, GSPO, ATPO and MT-GRPO, which are the same function with other switches
    igpo.py           IGPO and its first variant, igpo_joint
    gtpo.py           GTPO and the hybrid
    gigpo.py          GiGPO
    states.py         what was read before each turn, and which of it is alike
    methods.py        how one is found by its name
    turn_rewards.py   records of rollouts -> rewards of single turns
    shaping.py        what failed, compared with what passed
    uninformative.py  groups of rollouts that leave no turn with an advantage
    credit_pass.py    wires these into a trainer
    metrics.py        what is logged of them

N rollouts of all ranks, K turns. The docstring of each method works this group of three rollouts out by hand:

    rollout  turns                      gains     turn rewards    outcome   TRL's advantage of it
    a        search, search, answer     1, 2, -   0, 0, 0         1         1.1545
    b        search, answer             3, -      -0.1, 0         0         -0.5773
    c        answer                     -         -0.1            0         -0.5773

The second turns of a and b begin in the same state.

TRL's advantage is (outcome - mean) / (sample standard deviation + 1e-4): mean 1/3, deviation 0.57735.
"""

from ..information_gain.rounding import GAIN_FLOOR
from .a2tgpo import a2tgpo_credit
from .method import DEFAULTS, Evidence, Method, Preset, Switches, gain_clip_scale, method, preset_of
from .methods import METHODS, find_method
from .scores import (
    NORMALIZATIONS,
    SCALE_FLOOR,
    VARIANCE_FLOOR,
    clip_scale,
    discounted_sum,
    pooled_zscore,
    state_group_zscore,
    turn_group_zscore,
)


__all__ = [
    "DEFAULTS",
    "GAIN_FLOOR",
    "METHODS",
    "NORMALIZATIONS",
    "SCALE_FLOOR",
    "VARIANCE_FLOOR",
    "Evidence",
    "Method",
    "Preset",
    "Switches",
    "a2tgpo_credit",
    "clip_scale",
    "discounted_sum",
    "find_method",
    "gain_clip_scale",
    "method",
    "pooled_zscore",
    "preset_of",
    "state_group_zscore",
    "turn_group_zscore",
]
