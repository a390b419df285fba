"""gains, turn rewards, outcomes (N,K), groups (N,) -> advantages (N,K) and clip scale (N,K).

One setting selects the method (`credit: gtpo`, `--credit grpo`); task, rollouts and code stay the same.

    credit       credit of a turn                                                   ratio     clip range below, above 1
    grpo         outcome advantage of its rollout: TRL's GRPO, bit for bit          token     0.2, 0.2
    gspo         the same                                                           sequence  3e-4, 4e-4
    atpo         the same                                                           turn      3e-3, 4e-3
    igpo         gains and outcomes, each normalised over all turns of the prompt,  token     0.2, 0.2; KL 0.001
                 then summed from this turn to the end
    igpo_joint   the same, normalised together                                      token     0.2, 0.2; KL 0.001
    gtpo         turn rewards and outcome, summed to the end with discount 0.9,     token     0.2, 0.2
                 then normalised; failures shaped
    mt_grpo      turn rewards, normalised by depth and summed, plus the outcome     token     0.2, 0.2
    hybrid       the returns of gtpo, without shaping, plus 0.3 times the outcome   token     0.2, 0.2
    gigpo        outcome advantage, plus the discounted return of the turn minus    token     0.2, 0.2; KL 0.001
                 the mean return from the same state
    a2tgpo       gains, normalised by depth, summed and rescaled, plus the          turn      3e-3, 4e-3, scaled by
                 outcome                                                                      the gain
    a2tgpo_paper the same, gains of probability, with weight 1 instead of 0.3       turn      the same
    a2tgpo_code  a2tgpo, but the first and the last tool turn have no gain          turn      the same

For which one to use, see `recipes/study/README.md`, which has figures for one generated world: there igpo, and a2tgpo
with `gain_normalization: pooled` and a wider clip range, learn faster than grpo; a2tgpo as it is does not.

Each method sets the switches (`A2TGPOConfig`) to its paper's values; for a2tgpo, whose paper and code differ, see
`python -m pydoc a2tgpo_trl.credit.a2tgpo`. Your settings override them; a setting that the method never reads is
refused. `loss_type` is "grpo" for gspo, atpo and a2tgpo_paper, else "dapo". gtpo sets a turn reward,
{bad_format: -0.1}; for mt_grpo and hybrid you must set some. The docstring of a method has its formula and a worked
example: `help(find_method("gtpo"))` (`from a2tgpo_trl.credit import find_method`).
`a2tgpo compare RECIPE --credit grpo a2tgpo --seeds 0 1 2` trains several methods with several seeds and compares their
held-out learning curves. `recredited(records, "igpo")` of `a2tgpo_trl.recredit` shows how another method would have
credited rollouts that a run recorded (`record_every`).

A method of your own is a function in a file, `credit: my_credit.py:last_tool_turn`:

    import torch

    from a2tgpo_trl.credit import method


    @method(importance_sampling_level="turn", epsilon=3e-3, epsilon_high=4e-3, without_effect=["discount"])
    def last_tool_turn(evidence, switches):
        turns = torch.arange(evidence.gains_NK.size(1), device=evidence.gains_NK.device)
        is_last_NK = turns == evidence.num_turns_N.unsqueeze(1) - 2
        return is_last_NK * evidence.outcome_advantages_N.unsqueeze(1)

The decorator gives the method's values of settings; those that it does not name are GRPO's. `evidence` has `gains_NK`
(NaN if a turn has none, and everywhere unless `gain_weight` or `clip_adaptation` is above 0), `turn_rewards_NK`
(weighted sum, NaN if a turn has none), `outcomes_N` (NaN if nothing scored the rollout), `outcome_advantages_N`
(as TRL computes them), `num_turns_N` and `is_turn_NK` (the answer turn included; 0 for a rollout left out of the
loss), `group_ids_N`, `gain_floor` (how far gains may differ through rounding) and, if the decorator says
`needs_states=True`, `states_NK`. `switches` has the settings that methods read; `switches.gain_scores(evidence)`
returns the normalised gains.

A turn reward is a function that reads the record of a rollout and returns one number per turn. A recipe gives the
weight of each; a script passes functions as `turn_reward_funcs`:

    turn_rewards: {bad_format: -0.1, duplicate_call: -0.05, my_rewards.py:progress: 1.0}

The ready-made ones are bad_format (a call that cannot be read or made, text that was cut, a first turn without a
call), failed_call, duplicate_call, read_only, state_changing (for tools with `@tool(changes_state=True)`) and
environment (the attribute `turn_reward` of an environment). `turn_reward_weight` says how much they count in training:
1 with gtpo, mt_grpo, hybrid, gigpo and methods of your own, 0 with the others, which only log them until you set it.
The mapping may also be in a file, under a key turn_rewards (`turn_rewards: weights.yaml`).

A state is what the policy had just read when it began a turn: the prompt, or the results of its last calls. Two states
count as the same if their ratio of matching characters is at least `state_likeness`; with 1, only if they are equal.
GiGPO uses 0.9 for search results. gigpo compares what turns of a prompt earned from the same state on. With
`gain_groups: state`, gains are compared by state too, or by depth if a state has only one turn. Records have the
numbers of the states. The log has the share of turns that are alone in their state (`states/alone`), about which such
a comparison says nothing.

gtpo gives a failed rollout a share of the gap between its reward and `success_reward`: `failure_shaping` (0.5) times
how similar its attempt is to those of the passing rollouts of its group, measured by a small sentence encoder if one
is on the machine, else by hashed n-grams of tokens (`shaping_embedding`).

    scores.py         z-scores, discounted sums, clip scale: the parts of methods
    method.py         the signature that methods share, and the settings of a method's paper
    a2tgpo.py         A2TGPO, and GRPO, GSPO, ATPO and MT-GRPO, which are the same function with other switches
    igpo.py           IGPO and its first variant, igpo_joint
    gtpo.py           GTPO and the hybrid
    gigpo.py          GiGPO
    states.py         what was read before each turn, and which states are the same
    methods.py        finds a method by its name
    turn_rewards.py   records of rollouts -> rewards of single turns
    shaping.py        compares failed rollouts with passing ones
    uninformative.py  groups of rollouts that leave no turn with an advantage
    credit_pass.py    wires these into a trainer
    metrics.py        what is logged about them

N rollouts of all ranks, K turns. The docstring of each method works out this group of three rollouts by hand:

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
