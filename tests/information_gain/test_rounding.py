"""How far rounding moves gains: measured, and never credited. Atlas's policy on its task, in float32 and bf16."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from groups import uninformative
from near import NAN, assert_near
from training import logged, make
from training import settings as run_settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.credit import (
    GAIN_FLOOR,
    Evidence,
    Switches,
    find_method,
    gain_clip_scale,
    pooled_zscore,
    preset_of,
    turn_group_zscore,
)
from a2tgpo_trl.credit.metrics import floor_metrics
from a2tgpo_trl.information_gain import gain_pass
from a2tgpo_trl.information_gain.rounding import as_logprobs, floors_of_gains, gain_floor, spread_out, squares
from a2tgpo_trl.information_gain.values import Rollouts, information_gain
from a2tgpo_trl.precision import EXACT, TF32, rounding_unit, training_unit
from a2tgpo_trl.tasks.atlas import POLICY
from a2tgpo_trl.tasks.atlas.task import atlas


ROLLOUTS = 32
CPU = torch.device("cpu")


# ---- measured


class Atlas:
    """Rollouts of one question: each searches for what the question asks, and for one other thing."""

    def __init__(self, folder, seed: int):
        self._folder, self._task = folder, atlas()
        self._tokenizer = AutoTokenizer.from_pretrained(POLICY)
        one_hop = self._task.train_dataset.filter(lambda row: row["hops"] == 1)
        self._rows = one_hop.select([seed])
        texts = [row["prompt"][-1]["content"] for row in one_hop.select([seed, *range(100, 100 + ROLLOUTS)])]
        self._asked, *self._other = [re.sub(r"^\w+ is the |\?$", "", text) for text in texts]
        self.rollouts, self.answers = Rollouts([], [], []), []
        self._roll_out()

    def _write(self, turn: int, row: int) -> str:
        return tiny.call(f"{self._asked} {self._other[row]}") if turn == 0 else tiny.final(self._rows[0]["answer"])

    def trainer(self, **changes) -> A2TGPOTrainer:
        model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)
        tiny.script(model, self._tokenizer, self._write)
        settings = {"per_device_train_batch_size": ROLLOUTS, "num_generations": ROLLOUTS, "max_completion_length": 128}
        settings |= {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "max_steps": 1}
        settings |= changes
        args = A2TGPOConfig(str(self._folder), chat_template_kwargs={"enable_thinking": False}, **settings)
        given = {"processing_class": self._tokenizer, "tools": self._task.tools}
        return A2TGPOTrainer(model, self._task.reward_funcs, args, self._rows, **given)

    def _roll_out(self) -> None:
        trainer = self.trainer(learning_rate=0.0)
        run = trainer._gain_pass.run

        def kept(rollouts, answers, *given):
            self.rollouts, self.answers = rollouts, answers
            return run(rollouts, answers, *given)

        trainer._gain_pass.run = kept
        trainer.train()

    def evidence(self, **changes) -> Evidence:
        """What a trainer makes of the rollouts, which all earned the same."""
        scores, _ = self.trainer(**changes)._gain_pass.run(self.rollouts, self.answers, False)
        gains_NK = information_gain(scores.values_BK, 2)
        none_NK, nothing_N = torch.full_like(gains_NK, NAN), torch.zeros(ROLLOUTS)
        turns_N, groups_N = torch.full((ROLLOUTS,), 2), torch.zeros(ROLLOUTS, dtype=torch.long)
        floors = floors_of_gains(scores.values_BK, scores.gain_floor, changes.get("gain_measure", "logprob"))
        return Evidence(gains_NK, none_NK, nothing_N, nothing_N, turns_N, groups_N, floors)


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))]


@pytest.fixture(scope="module", params=SEEDS)
def world(request, tmp_path_factory):
    return Atlas(tmp_path_factory.mktemp("atlas"), request.param)


@pytest.fixture(scope="module")
def exact_and_rounded(world):
    """The same rollouts in float32 and bf16, each paired with the one whose gain in float32 is most similar."""
    exact, rounded = world.evidence(), world.evidence(bf16=True)
    pairs_N = exact.gains_NK[:, 0].argsort().argsort() // 2
    return replace(exact, group_ids_N=pairs_N), replace(rounded, group_ids_N=pairs_N)


def distances(evidence: Evidence) -> torch.Tensor:
    """Distances from the mean of the two gains that are compared."""
    gains_N = evidence.gains_NK[:, 0]
    means = torch.zeros(ROLLOUTS // 2).index_add(0, evidence.group_ids_N, gains_N / 2)
    return gains_N - means[evidence.group_ids_N]


def test_bf16_and_float32_scores_agree_in_sign_above_the_floor(exact_and_rounded):
    exact, rounded = exact_and_rounded
    assert exact.gain_floor == GAIN_FLOOR and 0.01 < rounded.gain_floor < 0.5
    above = torch.maximum(distances(exact).abs(), distances(rounded).abs()) > rounded.gain_floor
    assert above.any() and not above.all()
    # Without a floor, gains that hardly differ have scores of -1 and 1 as well, whichever way they were rounded.
    plain = [turn_group_zscore(one.gains_NK, one.group_ids_N)[:, 0] for one in exact_and_rounded]
    assert (plain[1][~above].abs() > 0.9).any() and (plain[0] * plain[1] > 0)[above].all()
    for name in ("turn_group", "pooled"):
        switches = Switches(gain_normalization=name, clip_adaptation=0.3)
        scores, theirs = (switches.gain_scores(one)[:, 0] for one in (rounded, exact))
        assert not (scores * theirs < 0).any()
        assert torch.equal(scores != 0, distances(rounded).abs() > rounded.gain_floor)
        scales = gain_clip_scale(rounded, switches)[:, 0]
        assert torch.equal(scales == 1, scores == 0)


def test_methods_give_no_credit_within_the_rounding_floor(exact_and_rounded):
    _, rounded = exact_and_rounded
    below = distances(rounded).abs() <= rounded.gain_floor
    for name in ("a2tgpo", "igpo", "igpo_joint"):
        switches = replace(preset_of(find_method(name)).switches, outcome_weight=0.0, gain_normalization="turn_group")
        advantages_NK = find_method(name)(rounded, switches)
        assert (advantages_NK[below] == 0).all() and (advantages_NK[~below, 0] != 0).all()
    share = floor_metrics(rounded.gains_NK, rounded.group_ids_N, rounded.gain_floor, 0.0)["gain/cells_below_floor"]
    assert share == pytest.approx(below.float().mean().item()) and 0 < share < 1


def test_gain_floor_is_deterministic_and_draws_no_random_numbers(world):
    before = torch.get_rng_state()
    torch.manual_seed(1)
    first = world.evidence(bf16=True)
    torch.manual_seed(2)
    assert world.evidence(bf16=True).gain_floor == first.gain_floor
    torch.manual_seed(3)
    state = torch.get_rng_state()
    trainer = world.trainer(bf16=True)
    torch.set_rng_state(state)
    trainer._gain_pass.run(world.rollouts, world.answers, False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)


def test_packing_in_bf16_is_tried_and_dropped_if_positions_are_ignored(world, monkeypatch):
    trainer = world.trainer(bf16=True)
    trainer._gain_pass.run(world.rollouts, world.answers, False)
    assert trainer._gain_pass.packing is not None
    # A model that ignores positions: a token's position is its place in the row.
    fused = gain_pass.fused_scorer
    monkeypatch.setattr(gain_pass, "fused_scorer", lambda *given: lambda *row: fused(*given)(*row[:3], None))
    trainer = world.trainer(bf16=True)
    trainer._gain_pass.run(world.rollouts, world.answers, False)
    assert trainer._gain_pass.packing is None


def test_rounding_of_probability_gains_stays_within_proportional_floors(world):
    exact, rounded = (world.evidence(bf16=bf16, gain_measure="probability") for bf16 in (False, True))
    floors_N = rounded.gain_floor[:, 0]
    assert floors_N.max() > 2 * floors_N.min()  # the control: answers differ
    off_N = (rounded.gains_NK - exact.gains_NK)[:, 0].abs()
    assert (off_N < floors_N).float().mean() > 0.8 and (off_N > floors_N / 100).any()
    switches = Switches()
    scores, theirs = (switches.gain_scores(one)[:, 0] for one in (rounded, exact))
    assert not (scores * theirs < 0).any() and (scores != 0).any()


@pytest.mark.parametrize("measure", ["logprob", "probability"])
def test_credit_gets_the_measured_floor_in_the_unit_of_its_gains(measure, tokenizer, tmp_path):
    args = A2TGPOConfig(**run_settings(tmp_path, max_steps=1, bf16=True, gain_measure=measure))
    trainer, found, records = make(tokenizer, args), [], []
    evidence = trainer._credit.evidence
    trainer._credit.evidence = lambda *given: (made := evidence(*given), found.append(made[0]))[0]
    trainer.on_rollouts = records.extend
    trainer.train()
    (floor,) = logged(trainer, "gain/floor")
    assert floor > GAIN_FLOOR
    for i, record in enumerate(records):
        for k in range(record["tool_turns"]):
            before, after = record["values"][k : k + 2]
            expected = floor if measure == "logprob" else floor * ((before**2 + after**2) / 2) ** 0.5
            of_turn = torch.as_tensor(found[0].gain_floor).expand_as(found[0].gains_NK)[i, k]
            assert of_turn.item() == pytest.approx(expected)


# ---- by hand


def test_gains_within_the_floor_of_the_mean_score_zero():
    # Depth 1: 1 and 1.15 are 0.075 from their mean. Depth 2: 1 and 3, deviation 1: 1 / sqrt(1 + 0.01).
    gains, group = torch.tensor([[1, 1], [1.15, 3]]), torch.tensor([4, 4])
    assert_near(turn_group_zscore(gains, group, 0.1), [[0, -0.99504], [0, 0.99504]], 1e-4)
    # All four: mean 1.5375, variance 0.71672; 1 is 0.5375 below, 3 is 1.4625 above: all are beyond 0.1, none beyond 2.
    deviation = (0.716719 + 0.01) ** 0.5
    expected = torch.tensor([[-0.5375, -0.5375], [-0.3875, 1.4625]]) / deviation
    assert_near(pooled_zscore(gains, group, 0.1), expected, 1e-4)
    assert (pooled_zscore(gains, group, 2.0) == 0).all()
    assert floor_metrics(gains, group, 0.1, 0.2) == {"gain/floor": 0.2, "gain/cells_below_floor": 0.5}
    of_each = torch.tensor([[0.1, 1.1], [0.1, 0.9]])
    assert floor_metrics(gains, group, of_each, 0.2)["gain/cells_below_floor"] == 0.5  # 3 is off by more than 0.9
    # A turn alone at its depth is compared with nothing; without gains there is no floor.
    assert floor_metrics(torch.tensor([[1.0]]), torch.tensor([0]), 0.1, 0.1) == {"gain/floor": 0.1}
    assert floor_metrics(torch.tensor([[NAN]]), torch.tensor([0]), 0.1, 0.1) == {}


def test_floor_of_a_probability_gain_is_proportional_to_its_values():
    values = torch.tensor([[0.01, 0.02, 0.5], [0.3, NAN, NAN]])
    # 0.1 sqrt((0.0001 + 0.0004) / 2), and 0.1 sqrt((0.0004 + 0.25) / 2); none without a gain.
    assert_near(floors_of_gains(values, 0.1, "probability"), [[0.0015811, 0.0353836], [NAN, NAN]], 1e-6)
    assert floors_of_gains(values, 0.1, "logprob") == 0.1
    assert_near(as_logprobs(values[:1], "probability"), [[-4.60517, -3.912023, -0.693147]], 1e-5)
    assert as_logprobs(values, "logprob") is values
    # A probability too small for float32 stays finite as a logarithm, and rounding moves it by nothing.
    none = as_logprobs(torch.tensor([0.0]), "probability")
    assert none.isfinite().all() and squares(none - none) == (0.0, 1)


def test_floor_of_a_return_is_the_highest_of_its_gains():
    gains = torch.tensor([[0.1, 0.02, NAN], [0.1, 0.05, NAN]])
    floors = torch.tensor([[0.01, 0.04, NAN], [0.05, 0.02, NAN]])
    nothing, turns, group = torch.zeros(2), torch.tensor([3, 3]), torch.tensor([0, 0])
    evidence = Evidence(gains, torch.full((2, 3), NAN), nothing, nothing, turns, group, floors)
    switches = Switches(gain_weight=0.5)
    assert_near(switches.returns_floor(evidence), [[0.02, 0.02, 0.0], [0.025, 0.01, 0.0]], 1e-7)
    assert_near(switches.signal_floor(evidence), [[0.005, 0.02, 0.0], [0.025, 0.01, 0.0]], 1e-7)


def test_turn_rewards_are_exact_and_have_no_floor():
    nothing = torch.zeros(2)
    rewards = torch.tensor([[0.0, NAN], [-0.1, NAN]])
    evidence = Evidence(
        torch.full((2, 2), NAN), rewards, nothing, nothing, torch.tensor([2, 2]), torch.tensor([0, 0]), gain_floor=1.0
    )
    for name in ("mt_grpo", "a2tgpo", "igpo"):
        switches = replace(preset_of(find_method(name)).switches, turn_reward_weight=1.0)
        assert_near(find_method(name)(evidence, switches)[:, 0], [1.0, -1.0], 1e-2)
    advantages = find_method("gtpo")(evidence, preset_of(find_method("gtpo")).switches)
    assert_near(advantages[:, 0], [1.0, -1.0], 1e-2)
    # Returns that contain gains have a floor: 0.5 x 1.
    mixed = replace(evidence, gains_NK=torch.tensor([[1.0, NAN], [1.5, NAN]]))
    switches = replace(preset_of(find_method("gtpo")).switches, gain_weight=0.5)
    assert (find_method("gtpo")(mixed, switches) == 0).all()


def test_outcomes_get_no_floor_when_normalised_together_with_gains():
    # Gains are 0.05 off their mean and rounded by 0.12, outcomes 0.1 off theirs.
    outcomes, turns, group = torch.tensor([0.1, -0.1]), torch.tensor([2, 2]), torch.tensor([0, 0])
    gains = torch.tensor([[0.05, NAN], [-0.05, NAN]])
    evidence = Evidence(gains, torch.full((2, 2), NAN), outcomes, outcomes, turns, group, gain_floor=0.12)
    # Together: variance (2 x 0.0025 + 2 x 0.01) / 4 = 0.00625, mean square of the floors 0.0144 / 2.
    score = 0.1 / (0.00625 + 0.0072) ** 0.5
    joint = find_method("igpo_joint")
    expected = torch.tensor([[score, score], [-score, -score]])
    assert_near(joint(evidence, preset_of(joint).switches), expected, 1e-4)
    # In returns, 0.05 + 0.9 x 0.1 = 0.14 is beyond the floor of gains; the answer turn's return contains no gain.
    first = 0.14 / (0.14**2 + 0.12**2) ** 0.5
    for name in ("gtpo", "hybrid"):
        switches = replace(preset_of(find_method(name)).switches, gain_weight=1.0, outcome_weight=0.0)
        assert_near(find_method(name)(evidence, switches), [[first, 1], [-first, -1]], 1e-4)


def test_equal_outcomes_score_zero_if_rounding_moves_the_joint_mean():
    # Gains of 0.03 and 0.05 with a floor of 0.12 make the mean 0.02, from which equal outcomes of 0 are 0.02 away:
    # less than the sqrt(2 x 0.12^2) / 4 = 0.042 that rounding moves the mean by.
    values, floors = torch.tensor([[0.03, 0.0], [0.05, 0.0]]), torch.tensor([0.12, 0.0])
    assert (pooled_zscore(values, torch.tensor([0, 0]), floors) == 0).all()


def test_group_whose_gains_differ_within_the_floor_is_uninformative():
    # 0.075 from the mean, and 0.125.
    for second, expected in ((1.15, True), (1.25, False)):
        assert uninformative([0.0, 0.0], [[1.0], [second]], [7, 7], gain_floor=0.1) == [expected]
    assert uninformative([0.0, 0.0], [[1.0], [1.15]], [7, 7]) == [False]


def test_the_floor_is_four_deviations_over_all_ranks():
    # sqrt((0.03^2 + 0.03^2 + 0.06^2) / 3) = 0.042426, times 4. Values that are not finite do not count.
    ranks = [squares(torch.tensor([[0.03, NAN], [-0.03, torch.inf]])), squares(torch.tensor([[0.06]]))]
    assert gain_floor(ranks) == pytest.approx(4 * 0.0424264)
    assert gain_floor([(0.0, 0)]) == gain_floor([squares(torch.tensor([1e-6]))]) == GAIN_FLOOR
    assert spread_out(3) == [0, 1, 2] and spread_out(32) == [0, 4, 8, 12, 16, 20, 24, 28]
    assert len(spread_out(100)) == 12 and len(spread_out(1000)) == 16
    # An eighth of all ranks' rollouts: 8 and 16 in total. With few rollouts on each of many ranks, one per rank.
    assert spread_out(16, 4) == [0, 8] and spread_out(16, 8) == [0, 8] and spread_out(4, 64) == [0]


# ---- precision


@pytest.mark.parametrize(
    ("weights", "mixed", "expected"),
    [
        (torch.float32, "no", 2.0**-24),
        (torch.float32, "bf16", 2.0**-8),
        (torch.float32, "fp16", 2.0**-11),
        (torch.bfloat16, "no", 2.0**-8),
        (torch.float16, "no", 2.0**-11),
    ],
    ids=str,
)
def test_rounding_unit_is_that_of_the_forward_precision(weights, mixed, expected):
    assert rounding_unit(weights, mixed, CPU) == expected


def test_a_model_rounds_as_its_coarsest_weights(tokenizer):
    accelerator = SimpleNamespace(mixed_precision="no", device=CPU)
    model = tiny.make_model(tokenizer)
    assert training_unit(accelerator, model) == EXACT
    # TRL's cast_lm_head_to_fp32 also casts embeddings that are tied to the head; the layers stay as they are.
    model.to(torch.bfloat16).get_input_embeddings().float()
    assert model.dtype == torch.float32 and training_unit(accelerator, model) == 2.0**-8
    model.float().is_loaded_in_8bit = True
    assert training_unit(accelerator, model) == 2.0**-8


@pytest.fixture
def tf32():
    before = torch.backends.fp32_precision
    torch.backends.fp32_precision = "tf32"
    yield
    torch.backends.fp32_precision = before


def test_float32_with_tf32_matmul_has_the_rounding_unit_of_tf32(tf32, tokenizer, tmp_path):
    for device in (CPU, torch.device("cuda")):
        assert rounding_unit(torch.float32, "no", device) == TF32
        assert rounding_unit(torch.float32, "bf16", device) == 2.0**-8
    trainer = make(tokenizer, A2TGPOConfig(**run_settings(tmp_path, max_steps=1, num_iterations=2)))
    assert not trainer._gain_pass._can_share_logps  # a clip range of a few thousandths would notice
    trainer.train()
    assert logged(trainer, "gain/floor")[0] > GAIN_FLOOR and trainer._gain_pass.packing is not None


def test_float32_is_not_scored_twice(tokenizer, tmp_path):
    trainer = make(tokenizer, A2TGPOConfig(**run_settings(tmp_path, max_steps=1)))
    trainer.train()
    assert logged(trainer, "gain/forwards") == [1] and logged(trainer, "gain/floor") == [GAIN_FLOOR]
    trainer = make(tokenizer, A2TGPOConfig(**run_settings(tmp_path, max_steps=1, bf16=True)))
    trainer.train()
    assert logged(trainer, "gain/forwards") == [2] and logged(trainer, "gain/floor")[0] > GAIN_FLOOR
