"""Each credit method, on the group of three rollouts that the docstrings work out by hand, and in training."""

import math
import re
import textwrap
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import NAN, assert_near
from pages import example
from recipe_files import write
from training import TOOL_TURNS, captured, logged, make, spread, weights
from training import settings as run_settings
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit import METHODS, Evidence, Switches, find_method, method, preset_of
from a2tgpo_trl.credit.scores import returns, weighted_sum
from a2tgpo_trl.recipe.recipe import read_recipe


# Rollouts a, b and c of the package's docstring: 3, 2 and 1 turns; a passes.
HIGH, LOW = 1.1545, -0.5773  # (1 - 1/3) / (0.57735 + 1e-4), (0 - 1/3) / 0.57745
WORKED = {
    "grpo": [[HIGH, HIGH, HIGH], [LOW, LOW], [LOW]],
    "gspo": [[HIGH, HIGH, HIGH], [LOW, LOW], [LOW]],
    "atpo": [[HIGH, HIGH, HIGH], [LOW, LOW], [LOW]],
    # Z: -1 and 1 at turn 1, a alone at turn 2. a: 1.1545 - 0.3 x 1/sqrt(2); b: -0.5773 + 0.3
    "a2tgpo": [[0.9424, HIGH, HIGH], [-0.2773, LOW], [LOW]],
    # The same, with weight 1
    "a2tgpo_paper": [[0.4474, HIGH, HIGH], [0.4227, LOW], [LOW]],
    # The first turns have no gain; a's second is alone at its depth.
    "a2tgpo_code": [[HIGH, HIGH, HIGH], [LOW, LOW], [LOW]],
    # z of 1, 2, 3: -1.2247, 0, 1.2247. a: -1.2247 + 0 + 1.1545; b: 1.2247 - 0.5773
    "igpo": [[-0.0702, HIGH, HIGH], [0.6475, LOW], [LOW]],
    # 1, 2, 3 and 1, 0, 0: mean 7/6, variance 41/36; a: (1 + 2 + 1 - 3.5) / 1.0672, (2 + 1 - 7/3) / 1.0672, ...
    "igpo_joint": [[0.4685, 0.6247, -0.1562], [0.6247, -1.0932], [-1.0932]],
    # Returns 0.81, 0.9, 1 | 0.17, 0.3 | -0.1, of which b's 0.3 is 0.5 x 0.6
    "gtpo": [[1.3540, 1.0, 0.0], [-0.3232, -1.0], [-1.0308]],
    # z of 0, -0.1, -0.1: sqrt(2), -1/sqrt(2) twice
    "mt_grpo": [[2.5687, HIGH, HIGH], [-1.2843, LOW], [-1.2843]],
    # Returns 0.81, 0.9, 1 | -0.1, 0 | -0.1; and 0.3 times the outcome
    "hybrid": [[1.7606, 1.3464, 0.3464], [-0.8803, -1.1732], [-0.8803]],
    # Returns 0.9025, 0.95, 1 | -0.1, 0 | -0.1; states 0, 1, 2 | 0, 1 | 0. 1.1545 + 1.1547, 1.1545 + 0.7071, ...
    "gigpo": [[2.3092, 1.8616, HIGH], [-1.1546, -1.2844], [-1.1546]],
}


def the_group(turn_rewards: bool = True, outcomes=(1.0, 0.0, 0.0)) -> Evidence:
    rewards = torch.tensor([[0, 0, 0], [-0.1, 0, NAN], [-0.1, NAN, NAN]])
    return Evidence(
        gains_NK=torch.tensor([[1, 2, NAN], [3, NAN, NAN], [NAN, NAN, NAN]]),
        turn_rewards_NK=rewards if turn_rewards else torch.full((3, 3), NAN),
        outcomes_N=torch.tensor(outcomes),
        outcome_advantages_N=torch.tensor([2 / 3, -1 / 3, -1 / 3]) / (math.sqrt(1 / 3) + 1e-4),
        num_turns_N=torch.tensor([3, 2, 1]),
        group_ids_N=torch.tensor([5, 5, 5]),
        states_NK=torch.tensor([[0, 1, 2], [0, 1, -1], [0, -1, -1]]),
    )


def switches_of(name: str, **changes) -> Switches:
    return replace(preset_of(find_method(name)).switches, **changes)


# ---- by hand


@pytest.mark.parametrize("name", METHODS)
def test_preset_credit_matches_the_values_in_its_docstring(name):
    rewarded = name in ("gtpo", "mt_grpo", "hybrid", "gigpo")
    outcomes = (1.0, 0.3, 0.0) if name == "gtpo" else (1.0, 0.0, 0.0)
    evidence = the_group(rewarded, outcomes)
    if not preset_of(find_method(name)).values["first_gain"]:
        evidence.gains_NK[:, 0] = NAN
    if not preset_of(find_method(name)).values["last_gain"]:
        evidence.gains_NK[0, 1] = evidence.gains_NK[1, 0] = NAN
    credited = find_method(name)(evidence, switches_of(name))
    expected = torch.tensor([[*row, *[0.0] * (3 - len(row))] for row in WORKED[name]])
    assert_near(credited[evidence.is_turn_NK], expected[evidence.is_turn_NK], 1e-3)
    docstring = find_method(name).__doc__
    for number in {number for row in WORKED[name] for number in row} - {0.0, 1.0, -1.0}:
        assert f"{number:.4f}" in docstring, number


@pytest.mark.parametrize("name", METHODS)
def test_rollout_out_of_the_loss_does_not_change_the_credit_of_the_others(name):
    # A fourth rollout of the prompt was cut off and masked out, whatever it earned.
    evidence = the_group()
    columns = {key: value for key, value in vars(evidence).items() if isinstance(value, torch.Tensor)}
    cut_off = {"outcomes_N": 9.0, "outcome_advantages_N": 2.0, "num_turns_N": 0, "group_ids_N": 5, "states_NK": -1}
    wider = {
        key: torch.cat([value, torch.full_like(value[:1], cut_off.get(key, NAN))]) for key, value in columns.items()
    }
    credit = find_method(name)
    alone, beside = credit(evidence, switches_of(name)), credit(replace(evidence, **wider), switches_of(name))
    assert_near(beside[:3][evidence.is_turn_NK], alone[evidence.is_turn_NK])


def test_every_preset_is_worked_out_and_no_two_are_the_same():
    assert set(WORKED) == set(METHODS)
    values = [(str(preset_of(find_method(name)).values), str(WORKED[name])) for name in METHODS]
    assert len(set(values)) == len(METHODS)


def test_returns_sum_the_rewards_of_later_turns():
    # 0.9^2 - 0.1 = 0.71; the second rollout has one turn, and the third none.
    rewards = torch.tensor([[-0.1, 0.0, 1.0], [0.5, 9.0, 9.0], [1.0, 1.0, 1.0]])
    is_turn = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert_near(returns(rewards, is_turn, 0.9, False), [[0.71, 0.9, 1.0], [0.5, NAN, NAN], [NAN, NAN, NAN]])
    assert_near(returns(rewards, is_turn, 1.0, True)[0], [0.9 / math.sqrt(3), 1 / math.sqrt(2), 1.0])

    # A turn without a reward adds no term and gets the later ones: (2 + 1) / sqrt(2) twice, then 1.
    late = torch.tensor([[NAN, 2.0, 1.0]])
    assert_near(returns(late, torch.ones(1, 3, dtype=torch.bool), 1.0, True), [[3 / math.sqrt(2)] * 2 + [1.0]])


def test_a_turn_without_a_reward_of_its_own_has_those_of_the_turns_after_it():
    # Only second turns have a reward: a 1, b 0 -> z 1, -1. Their first turns led there; c has no second turn.
    rewards = torch.tensor([[NAN, 1, NAN], [NAN, 0, NAN], [NAN, NAN, NAN]])
    evidence = replace(the_group(), turn_rewards_NK=rewards)
    late = torch.tensor([[1, 1, 0], [-1, -1, 0], [0, 0, 0]])
    plain = torch.tensor([[HIGH], [LOW], [LOW]]).expand(3, 3)
    assert_near(find_method("mt_grpo")(evidence, switches_of("mt_grpo")), plain + late, 1e-3)
    for name in ("grpo", "gspo", "atpo"):
        credited = find_method(name)(evidence, switches_of(name, turn_reward_weight=0.5))
        assert_near(credited, plain + 0.5 * late, 1e-3)
    # Rewards only for answers, compared with all turns: 1, 0, 0 -> sqrt(2), -1/sqrt(2) twice, one term each.
    paid = torch.tensor([[NAN, NAN, 1], [NAN, 0, NAN], [0, NAN, NAN]])
    evidence = replace(the_group(), turn_rewards_NK=paid)
    switches = switches_of("a2tgpo", gain_weight=0.0, turn_reward_weight=1.0, gain_normalization="pooled")
    credited = find_method("a2tgpo")(evidence, switches)
    expected = torch.tensor([[2.5687] * 3, [-1.2843] * 3, [-1.2843] * 3])
    assert_near(credited[evidence.is_turn_NK], expected[evidence.is_turn_NK], 1e-3)


def test_turn_with_unknown_gain_is_credited_by_the_outcome_only():
    # a's first probe failed: its second turn has its own score; the first is not credited with scores of other turns.
    gains = torch.tensor([[NAN, 2, NAN], [3, 4, NAN], [NAN, NAN, NAN]])
    credited = find_method("a2tgpo")(replace(the_group(False), gains_NK=gains), switches_of("a2tgpo"))
    assert_near(credited[0], [HIGH, HIGH - 0.3, HIGH], 1e-3)


def test_weighted_sum_ignores_missing_terms_and_zero_weights():
    # 0.5 x 1 + 2 x 3; 2 x 4; nothing. A term of weight 0 has no effect, not even on which entries exist.
    first, second = torch.tensor([1, NAN, NAN]), torch.tensor([3, 4, NAN])
    assert_near(weighted_sum((0.5, first), (2.0, second)), [6.5, 8, NAN])
    assert_near(weighted_sum((0.5, first), (0.0, second)), [0.5, NAN, NAN])
    assert_near(weighted_sum((0.0, first), (0.0, second)), [NAN, NAN, NAN])


def test_stopped_rollouts_count_as_zero_gain_with_stopped_count():
    # c answers immediately, b after one turn. Turn 1: 1, 3 and 0, mean 4/3, variance 14/9 -> -0.2673, 1.3363.
    # Turn 2: 2, 0 and 0, mean 2/3, variance 8/9 -> 1.4142, which would be 0 if a were alone.
    switches = switches_of("a2tgpo", stopped_count=True)
    evidence = the_group(False)
    assert_near(switches.gain_scores(evidence), [[-0.2673, 1.4142, NAN], [1.3363, NAN, NAN], [NAN, NAN, NAN]], 1e-3)
    credited = find_method("a2tgpo")(evidence, switches)
    assert_near(credited[0], [HIGH + 0.3 * (1.4142 - 0.2673) / math.sqrt(2), HIGH + 0.3 * 1.4142, HIGH], 1e-3)
    assert_near(credited[1, :2], [LOW + 0.3 * 1.3363, LOW], 1e-3)
    assert_near(credited[2, 0], LOW, 1e-3)
    # Calls that gain nothing are no better than stopping; a rollout left out of the loss does not count.
    idle = replace(evidence, gains_NK=torch.tensor([[0, 0, NAN], [0, NAN, NAN], [NAN, NAN, NAN]]))
    assert_near(switches.gain_scores(idle), [[0, 0, NAN], [0, NAN, NAN], [NAN, NAN, NAN]])
    out = replace(evidence, num_turns_N=torch.tensor([3, 2, 0]))
    assert_near(switches.gain_scores(out), [[-1, 1, NAN], [1, NAN, NAN], [NAN, NAN, NAN]], 1e-3)
    # A turn whose probe failed has not stopped.
    failed = replace(evidence, gains_NK=torch.tensor([[NAN, 2, NAN], [3, NAN, NAN], [NAN, NAN, NAN]]))
    assert_near(switches.gain_scores(failed)[:, 0], [NAN, 1, NAN], 1e-3)
    # A difference that rounding explains is still 0: 0.05 beside two that are exactly 0.
    close = replace(evidence, gains_NK=torch.tensor([[2, 0.05, NAN], [3, NAN, NAN], [NAN, NAN, NAN]]), gain_floor=0.1)
    assert_near(switches.gain_scores(close)[0, 1], 0.0)


def test_stopped_count_rewards_calling_where_depth_scores_do_not():
    # Half of eight rollouts call, and every call gains 2 or 2.2. Calling is far better than not calling.
    gains = torch.tensor([[2.0, NAN], [2.2, NAN]] * 2 + [[NAN, NAN]] * 4)
    evidence = replace(
        the_group(False),
        gains_NK=gains,
        num_turns_N=torch.tensor([2] * 4 + [1] * 4),
        group_ids_N=torch.zeros(8, dtype=torch.long),
    )
    apart, together = (switches_of("a2tgpo", stopped_count=how).gain_scores(evidence)[:4, 0] for how in (False, True))
    assert apart.mean().item() == pytest.approx(0, abs=1e-6)
    assert (together > 0.8).all() and together[1] > together[0]


@st.composite
def groups(draw):
    """Evidence of a few rollouts of up to four turns, in at most two groups, as the trainer would make it."""
    number = draw(st.integers(1, 7))
    num_turns = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=number, max_size=number)))
    some = st.lists(st.integers(-8, 8).map(lambda x: x / 4), min_size=4 * number, max_size=4 * number)
    turns = torch.arange(4)
    gains = torch.tensor(draw(some)).view(number, 4).masked_fill(turns >= num_turns.unsqueeze(1) - 1, NAN)
    rewards = torch.tensor(draw(some)).view(number, 4).masked_fill(turns >= num_turns.unsqueeze(1), NAN)
    outcomes = torch.tensor(draw(some))[:number]
    ids = torch.tensor(draw(st.lists(st.sampled_from([3, 8]), min_size=number, max_size=number)))
    states = torch.tensor(draw(st.lists(st.integers(0, 5), min_size=4 * number, max_size=4 * number)))
    states = states.view(number, 4).masked_fill(turns >= num_turns.unsqueeze(1), -1)
    return Evidence(gains, rewards, outcomes, outcomes - outcomes.mean(), num_turns, ids, states_NK=states)


@settings(max_examples=60, deadline=None)
@given(groups(), st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_credit_is_finite_and_independent_of_order_and_other_prompts(evidence, name, random):
    credit, switches = find_method(name), switches_of(name)
    credited = credit(evidence, switches).masked_fill(~evidence.is_turn_NK, 0.0)
    assert credited.isfinite().all()
    order = list(range(len(credited)))
    random.shuffle(order)
    own = (evidence.group_ids_N == evidence.group_ids_N[0]).nonzero().flatten().tolist()
    for chosen in (order, own):
        of_rollouts = {key: value[chosen] for key, value in vars(evidence).items() if isinstance(value, torch.Tensor)}
        part = replace(evidence, **of_rollouts)
        again = credit(part, switches).masked_fill(~part.is_turn_NK, 0.0)
        assert_near(again, credited[chosen], 1e-3)


@settings(max_examples=60, deadline=None)
@given(groups(), st.floats(0, 1), st.booleans())
def test_normalised_returns_are_those_of_a_loop_over_turns(evidence, gamma, rescale):
    switches = switches_of("gtpo", discount=gamma, rescale_accumulation=rescale, gain_normalization="none")
    credited = find_method("gtpo")(evidence, switches).tolist()
    for i, turns in enumerate(evidence.num_turns_N.tolist()):
        earned = [0.0 if math.isnan(r) else r for r in evidence.turn_rewards_NK[i].tolist()[:turns]]
        for t in range(turns):
            total = sum(gamma ** (j - t) * earned[j] for j in range(t, turns))
            total += gamma ** (turns - 1 - t) * evidence.outcomes_N[i].item()
            total /= math.sqrt(turns - t) if rescale else 1
            assert credited[i][t] == pytest.approx(total, abs=1e-5)


def test_weights_mix_gains_turn_rewards_and_outcomes():
    evidence = the_group()
    # A2TGPO with half of the turn rewards: 0.5 x (1.4142 + 0 + 0) / sqrt(3) on top of what gains give a's first turn.
    credited = find_method("a2tgpo")(evidence, switches_of("a2tgpo", turn_reward_weight=0.5))
    assert credited[0, 0].item() == pytest.approx(0.9424 + 0.5 * 1.4142 / math.sqrt(3), abs=1e-3)
    # IGPO without the outcome is the sum of the gains' scores; nothing is left for its answer turn.
    credited = find_method("igpo")(the_group(False), switches_of("igpo", outcome_weight=0.0))
    assert_near(credited[0], [-1.2247, 0.0, 0.0], 1e-3)
    # GTPO with gains of weight 0.1, compared with nothing: a's first turn 0.1 + 0.9 x 0.2 + 0.81
    credited = find_method("gtpo")(the_group(), switches_of("gtpo", gain_weight=0.1, gain_normalization="none"))
    assert credited[0, 0].item() == pytest.approx(0.1 + 0.18 + 0.81, abs=1e-5)


# ---- settings


def config(**changes) -> A2TGPOConfig:
    return A2TGPOConfig("unused", bf16=False, use_cpu=True, report_to="none", **changes)


@pytest.mark.parametrize("name", METHODS)
def test_a_preset_sets_its_papers_values_and_a_users_value_wins(name):
    args = config(credit=name)
    for key, value in preset_of(find_method(name)).values.items():
        assert getattr(args, key) == value, key
    changed = config(credit=name, discount=0.5, turn_reward_weight=0.5, epsilon=0.1, turn_rewards={"failed_call": -1})
    assert (changed.discount, changed.epsilon, changed.epsilon_high) == (0.5, 0.1, 0.1)
    assert changed.turn_rewards == {"failed_call": -1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"credit": "gtpo", "outcome_weight": 0.3}, "outcome_weight has no effect with credit='gtpo'"),
        ({"credit": "gtpo", "scale_rewards": "none"}, "scale_rewards has no effect with credit='gtpo'"),
        ({"credit": "a2tgpo", "failure_shaping": 0.5}, "failure_shaping has no effect with credit='a2tgpo'"),
        ({"credit": "hybrid", "success_reward": 0.5}, "have no effect without failure_shaping"),
        ({"credit": "grpo", "discount": 0.5}, "discount has no effect with credit='grpo' while gain_weight and"),
        ({"credit": "gspo", "gain_normalization": "pooled"}, "gain_normalization has no effect with credit='gspo'"),
        (
            {"credit": "a2tgpo", "gain_weight": 0.0, "rescale_accumulation": False},
            "rescale_accumulation has no effect with credit='a2tgpo'",
        ),
        ({"credit": "gtpo", "gain_measure": "probability"}, "gain_measure has no effect with credit='gtpo'"),
        ({"credit": "my_methods"}, "credit must be one of 'a2tgpo', 'grpo'"),
        ({"credit": "no_such_file.py:method"}, "There is no file 'no_such_file.py'"),
        ({"credit": "math:pi"}, "credit: math:pi must be a function, not float"),
        ({"credit": "math:floo"}, "math has no 'floo'. Did you mean 'floor'?"),
        ({"turn_rewards": {"bad_format": "much"}}, "turn_rewards: bad_format must be a number"),
        ({"turn_rewards": "no_such_file.yaml"}, "there is no file no_such_file.yaml next to the recipe"),
    ],
    ids=str,
)
def test_unread_settings_and_unknown_methods_are_refused(changes, message):
    with pytest.raises(ValueError, match="(?s)" + message.replace("(", r"\(")):
        config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"credit": "grpo", "discount": 0.5, "gain_normalization": "pooled", "gain_weight": 0.1},
        {"credit": "grpo", "discount": 0.5, "rescale_accumulation": False, "turn_reward_weight": 0.1},
        {"credit": "grpo", "gain_normalization": "pooled", "clip_adaptation": 0.3},  # of the clip range
        {"credit": "igpo", "discount": 0.5, "gain_weight": 0.0},  # of the outcome, which is its last gain
        {"credit": "grpo", "gain_measure": "probability", "eval_gains": True},
    ],
    ids=str,
)
def test_settings_that_have_a_reader_may_be_set(changes):
    args = config(**changes)
    assert {name: getattr(args, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss_type": "vespo", "epsilon": 0.1}, "epsilon=0.1, epsilon_high=0.1: .*'vespo' weighs whole rollouts"),
        ({"loss_type": "sapo", "delta": 3.0}, "delta=3.0: .*'sapo' fades"),
        ({"loss_type": "cispo", "epsilon": 0.1, "epsilon_high": 5.0}, "epsilon=0.1: .*'cispo' caps the ratio at"),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, None),
        ({"num_iterations": 2, "epsilon": 0.1, "delta": 3.0}, None),
    ],
    ids=str,
)
def test_settings_that_a_loss_does_not_read_are_named(changes, said):
    idle = config(credit="igpo", **changes).idle_clip_range
    assert idle is None if said is None else re.match(said, idle)


def test_settings_of_the_gain_pass_are_named_if_no_gains_are_computed():
    chosen = {"probe_template": "Answer: {answer}", "gain_token_budget": 512}
    assert config(credit="grpo", **chosen).idle_gain_pass.startswith("probe_template, gain_token_budget: no effect")
    assert config(credit="grpo").idle_gain_pass is None
    assert config(credit="grpo", eval_gains=True, **chosen).idle_gain_pass is None
    assert config(**chosen).idle_gain_pass is None


def test_method_decorator_names_valid_settings_for_an_unknown_one():
    with pytest.raises(ValueError, match="no setting gain_wait; use outcome_weight, gain_weight"):
        method(gain_wait=1.0)
    with pytest.raises(ValueError, match="no setting discont; use"):
        method(without_effect=["discont"])
    with pytest.raises(ValueError, match="no setting discont; use"):
        method(needs_weight=["discont"])


# ---- in training


@pytest.mark.parametrize("extra", [{}, {"beta": 0.1, "use_bias_correction_kl": False}, {"delta": 1.5}], ids=str)
def test_preset_gspo_trains_like_trls_sequence_level_ratio(extra, tokenizer, tmp_path, monkeypatch):
    # On-policy in the first step, off-policy in the second.
    # SGD, because Adam divides rounding by itself when a gradient is this small.
    common = run_settings(tmp_path, num_iterations=2, steps_per_generation=2, optim="sgd", **extra)
    if extra:
        monkeypatch.setattr(
            "trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: tiny.make_model(tokenizer, seed=1)
        )
    theirs = GRPOConfig(
        **common, importance_sampling_level="sequence", loss_type="grpo", epsilon=3e-4, epsilon_high=4e-4
    )
    trl = make(tokenizer, theirs, trainer=GRPOTrainer)
    trl.train()
    ours = make(tokenizer, A2TGPOConfig(**common, credit="gspo"))
    start = weights(ours)
    ours.train()
    for name, before in start.items():
        step = (weights(trl)[name] - before).abs().max().item()
        torch.testing.assert_close(weights(ours)[name], weights(trl)[name], atol=1e-4 * step + 1e-7, rtol=0)
    assert logged(ours, "loss") == pytest.approx(logged(trl, "loss"), abs=1e-6)


CREDITED = {"advantages", "clip_scale"}


def test_methods_differ_in_credit_and_in_nothing_else_of_a_batch(tokenizer, tmp_path):
    # Without KL, which belongs to IGPO's loss and would add the reference's log-probabilities.
    batches, advantages = {}, {}
    for name in METHODS:
        rewarded = {"turn_rewards": {"bad_format": -0.1}} if name in ("mt_grpo", "hybrid") else {}
        # These rollouts call tools in at most two turns: without both gains there would be none.
        rewarded |= {"last_gain": True} if name == "a2tgpo_code" else {}
        same = {"max_steps": 1, "num_iterations": 2, "beta": 0.0, "sorted_rows": False}
        args = A2TGPOConfig(**run_settings(tmp_path, **same, credit=name, **rewarded))
        trainer = make(tokenizer, args, reward_funcs=spread)
        (batch,) = captured(trainer)[:1]
        advantages[name] = batch.pop("advantages")
        batches[name] = {key: value for key, value in batch.items() if key not in CREDITED}
    for name, batch in batches.items():
        assert batch.keys() == batches["a2tgpo"].keys(), name
        for key, value in batch.items():
            # The log-probabilities of A2TGPO and IGPO come from the gain pass, those of the others from the parent.
            near = {"atol": 1e-5, "rtol": 1e-5} if value.is_floating_point() else {"atol": 0, "rtol": 0}
            wanted = batches["a2tgpo"][key]
            if key == "old_per_token_logps":  # those of tool results are in no loss and may be missing
                value, wanted = value[batch["turn_index"] >= 0], wanted[batch["turn_index"] >= 0]
            torch.testing.assert_close(value, wanted, **near, msg=f"{name}: {key}")
    assert all(torch.equal(advantages["grpo"], advantages[name]) for name in ("gspo", "atpo"))
    different = [name for name in METHODS if name not in ("gspo", "atpo")]
    assert len({str(advantages[name].tolist()) for name in different}) == len(different)


OWN = example("credit/__init__.py", "def last_tool_turn")


def test_custom_credit_method_fits_in_a_file_of_twenty_lines(tokenizer, tmp_path, monkeypatch):
    assert len(OWN.strip().splitlines()) <= 20
    (tmp_path / "own_credit.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    args = A2TGPOConfig(**run_settings(tmp_path, max_steps=1, credit="own_credit.py:last_tool_turn"))
    assert (args.importance_sampling_level, args.epsilon, args.gain_weight) == ("turn", 3e-3, 0.0)
    batch = captured(make(tokenizer, args, reward_funcs=spread))[0]
    # The last tool turn gets the outcome, all other turns nothing. Rewards 0, 1, 2, 0: mean 0.75, deviation 0.9574.
    expected = {3: [0, -0.7833, 0], 2: [0.2611, 0], 1: [0], 4: [0, 0, -0.7833, 0]}  # by number of turns
    for turns, advantages in zip(batch["turn_index"], batch["advantages"], strict=True):
        credited = [advantages[turns == k].unique().item() for k in range(int(turns.max()) + 1)]
        assert credited == pytest.approx(expected.pop(len(credited)), abs=1e-4)
    with pytest.raises(ValueError, match="discount has no effect with credit='own_credit.py:last_tool_turn'"):
        A2TGPOConfig(**run_settings(tmp_path, credit="own_credit.py:last_tool_turn", discount=0.5))


def test_unscored_rollouts_get_no_credit_from_any_method(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "raw.py").write_text("def raw(it, _):\n    return it.outcomes_N.unsqueeze(1).expand_as(it.gains_NK)\n")
    monkeypatch.chdir(tmp_path)
    args = A2TGPOConfig(**run_settings(tmp_path, max_steps=1, credit="raw.py:raw"))
    trainer = make(tokenizer, args, reward_funcs=lambda completions, **_: [1.0, 0.0, None, 0.5])
    batch = captured(trainer)[0]
    by_turns = {int(turns.max()) + 1: row for row, turns in enumerate(batch["turn_index"])}
    earned = {turns: batch["advantages"][row].max().item() for turns, row in by_turns.items()}
    assert earned == {3: 1.0, 2: 0.0, 1: 0.0, 4: 0.5}
    assert all(tensor.isfinite().all() for tensor in weights(trainer).values())


def test_outcomes_are_the_weighted_sum_of_the_rewards(tokenizer, tmp_path, monkeypatch):
    # 0.5 x 1 + 2 x 0, 0.5 x 0 + 2 x 3, and the one that was not scored counts nothing: 0.5 x 4, 2 x -1.
    (tmp_path / "raw.py").write_text("def raw(it, _):\n    return it.outcomes_N.unsqueeze(1).expand_as(it.gains_NK)\n")
    monkeypatch.chdir(tmp_path)
    rewards = [lambda completions, **_: [1.0, 0.0, 4.0, None], lambda completions, **_: [0.0, 3.0, None, -1.0]]
    args = A2TGPOConfig(**run_settings(tmp_path, max_steps=1, credit="raw.py:raw", reward_weights=[0.5, 2.0]))
    batch = captured(make(tokenizer, args, reward_funcs=rewards))[0]
    of_turns = {turns + 1: expected for turns, expected in zip(TOOL_TURNS, (0.5, 6.0, 2.0, -2.0), strict=True)}
    for turns, advantages in zip(batch["turn_index"], batch["advantages"], strict=True):
        assert (advantages[turns >= 0] == of_turns[int(turns.max()) + 1]).all()


def test_method_returning_an_invalid_tensor_is_an_error(tokenizer, tmp_path, monkeypatch):
    code = "def sums(evidence, switches):\n    return evidence.gains_NK\n"
    (tmp_path / "holes.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    args = A2TGPOConfig(**run_settings(tmp_path, max_steps=1, credit="holes.py:sums"))
    with pytest.raises(
        ValueError, match="must return a finite number for each turn.*No gains are computed: set gain_"
    ):
        make(tokenizer, args).train()
    code = "def flat(evidence, switches):\n    return evidence.outcomes_N\n"
    (tmp_path / "flat.py").write_text(code)
    args = A2TGPOConfig(**run_settings(tmp_path, max_steps=1, credit="flat.py:flat"))
    with pytest.raises(ValueError, match=r"must return a tensor of shape \(4, 4\); it returned one of shape \(4,\)"):
        make(tokenizer, args).train()


def test_a_recipe_finds_a_method_and_turn_rewards_beside_it(tmp_path):
    (tmp_path / "own_credit.py").write_text(OWN)
    (tmp_path / "own_rewards.py").write_text(
        textwrap.dedent("""
        def depth(record):
            return [float(i) for i, _ in enumerate(record["turns"])]
        """)
    )
    (tmp_path / "weights.yaml").write_text("turn_rewards: {failed_call: -0.2, 'own_rewards.py:depth': 0.5}\n")
    file = write(tmp_path, "credit: own_credit.py:last_tool_turn\nturn_rewards: weights.yaml")
    recipe = read_recipe(["--config", str(file)])
    assert recipe.args.credit_method.__name__ == "last_tool_turn"
    assert recipe.args.turn_rewards == {"failed_call": -0.2, "own_rewards.py:depth": 0.5}
    assert recipe.own_turn_rewards["own_rewards.py:depth"]({"turns": [{}, {}]}) == [0.0, 1.0]
    for words in (["--credit", "grpo"], ["--credit=grpo"]):
        assert read_recipe(["--config", str(file), *words]).args.credit == "grpo"
    (tmp_path / "weights.yaml").write_text("failed_call: -0.2\n")
    with pytest.raises(ValueError, match="must hold the key turn_rewards"):
        read_recipe(["--config", str(file)])


def test_credit_method_is_identified_by_its_code_not_its_path(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    for folder, code in (("a", OWN), ("b", OWN), ("c", OWN + "\n# another\n")):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "own_credit.py"
        file.write_text(code)
        args = A2TGPOConfig(**run_settings(tmp_path, credit=f"{file}:last_tool_turn"))
        names.append(make(tokenizer, args).settings_of_run()["credit"])
    assert names[0] == names[1] != names[2] and names[0].startswith("own_credit.py:last_tool_turn (")
