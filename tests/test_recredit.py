"""Recorded rollouts credited by another method, as in a run with that method; and what can prevent it."""

import pytest
import tiny
from training import make, settings, spread

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit import METHODS
from a2tgpo_trl.recredit import Recorded, recredited
from a2tgpo_trl.rollout.reading import read_places


# Turn rewards for the methods that need them, and an embedding that is available on every machine.
SETTINGS = {
    "gtpo": {"shaping_embedding": "ngrams"},
    "mt_grpo": {"turn_rewards": {"bad_format": -0.1, "failed_call": -0.2}},
    "hybrid": {"turn_rewards": {"bad_format": -0.1, "failed_call": -0.2}},
    "gigpo": {"turn_rewards": {"bad_format": -0.1}, "turn_reward_weight": 1.0, "state_likeness": 0.9},
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.make_tokenizer()


def recorded(tokenizer, folder, credit: str, **changes) -> list:
    """The rollouts that a run's first step trained on."""
    changes = {"record_every": 1, "max_steps": 1, "per_device_train_batch_size": 8, "beta": 0.0, **changes}
    args = A2TGPOConfig(**settings(folder, **changes), credit=credit)
    make(tokenizer, args, reward_funcs=spread).train()
    return read_places([folder])


@pytest.fixture(scope="module")
def of_a2tgpo(tokenizer, tmp_path_factory):
    return recorded(tokenizer, tmp_path_factory.mktemp("run"), "a2tgpo")


# Variants of other methods, which differ only in their switches.
SWITCHED = ("gspo", "atpo", "igpo_joint", "mt_grpo", "a2tgpo", "a2tgpo_paper")


@pytest.mark.parametrize(
    "credit", [pytest.param(name, marks=[pytest.mark.slow] * (name in SWITCHED)) for name in METHODS]
)
def test_recredited_rollouts_equal_a_run_with_the_method(credit, of_a2tgpo, tokenizer, tmp_path):
    changes = SETTINGS.get(credit, {})
    expected = recorded(tokenizer, tmp_path, credit, **changes)
    found = recredited(of_a2tgpo, credit, **changes)
    assert len(found) == len(expected) == 8 and {record["group"] for record in found} == {0, 1}
    for one, other in zip(found, expected, strict=True):
        assert one["prompt"] == other["prompt"] and one["completion"] == other["completion"]
        for name in ("outcome", "outcome_advantage", "advantages", "scores", "clip_scale"):
            assert one[name] == pytest.approx(other[name], abs=1e-5), name
    if credit != "a2tgpo":
        assert [one["advantages"] for one in found] != [one["advantages"] for one in of_a2tgpo]
    assert "states" not in of_a2tgpo[0] and "turn_rewards" not in of_a2tgpo[0]  # the given records are not changed


def test_recredit_settings_override_those_of_the_paper(of_a2tgpo):
    paper, doubled = recredited(of_a2tgpo, "a2tgpo"), recredited(of_a2tgpo, "a2tgpo", gain_weight=0.6)
    for one, other in zip(paper, doubled, strict=True):
        credit = [advantage - one["outcome_advantage"] for advantage in one["advantages"]]
        twice = [advantage - other["outcome_advantage"] for advantage in other["advantages"]]
        assert twice == pytest.approx([2 * value for value in credit], abs=1e-5)
    assert any(abs(value) > 0.1 for value in credit)


def test_recredit_of_two_rollouts_worked_out_by_hand():
    # Scores -1 and 1; A = outcome + 0.3 D; c = 1 -+ 0.3 x 0.46212
    turns = [{"calls": [], "status": "ok"}] * 2
    records = [
        {"step": 1, "group": 0, "turns": turns, "outcome": outcome, "outcome_advantage": outcome / 2}
        | {"values": [0.0, value], "advantages": [0.0, 0.0]}
        for value, outcome in ((1.0, 0.0), (3.0, 1.0))
    ]
    low, high = recredited(records, "a2tgpo", Recorded(outcome_weight=0.5))
    assert low["advantages"] == pytest.approx([-0.3, 0.0], abs=1e-4)
    assert high["advantages"] == pytest.approx([1.3, 1.0], abs=1e-4)
    assert (low["clip_scale"], high["clip_scale"]) == (
        pytest.approx([0.861, 1], abs=1e-3),
        pytest.approx([1.139, 1], abs=1e-3),
    )
    assert (low["scores"][1], high["outcome_advantage"]) == (None, 1.0)


def test_excluded_and_valueless_rollouts_are_left_out_of_recredit(of_a2tgpo):
    left_out = {**of_a2tgpo[0], "advantages": [], "excluded": True}
    unknown = {**of_a2tgpo[1], "values": [None] * len(of_a2tgpo[1]["values"])}
    found = recredited([left_out, unknown, *of_a2tgpo[2:]], "a2tgpo")
    assert found[0]["advantages"] == [] and set(found[1]["scores"]) == {None}
    assert found[1]["advantages"] == pytest.approx([found[1]["outcome_advantage"]] * len(found[1]["turns"]))
    assert found[3]["scores"] != of_a2tgpo[3]["scores"] and found[7]["scores"] == pytest.approx(of_a2tgpo[7]["scores"])


def test_rollouts_that_cannot_be_recredited_are_an_error(of_a2tgpo):
    without_values = [{key: value for key, value in record.items() if key != "values"} for record in of_a2tgpo]
    without_credit = [{key: value for key, value in record.items() if key != "outcome"} for record in of_a2tgpo]
    for records, credit, changes, said in (
        (without_values, "igpo", {}, "no values"),
        (without_credit, "igpo", {}, "no outcome: this needs records of training"),
        (of_a2tgpo[:-1], "igpo", {}, "3 and 4 rollouts"),
        (of_a2tgpo, "igpo", {"gain_wait": 1.0}, "Did you mean 'gain_weight'"),
        (of_a2tgpo, "gigpo", {"gain_groups": "state"}, "no effect with credit='gigpo'"),
        (of_a2tgpo, "grpo", {"discount": 0.5}, "discount has no effect with credit='grpo'"),
        (of_a2tgpo, "mt_grpo", {}, "needs turn rewards with a weight, and there are none"),
        (of_a2tgpo, "mt_grpo", {"turn_rewards": "weights.yaml"}, "must be a mapping here"),
    ):
        with pytest.raises(ValueError, match=said):
            recredited(records, credit, **changes)
    for changes, said in (
        ({"outcome_weight": 0.0}, "cannot be recovered from records"),
        ({"gain_measure": "logits"}, "gain_measure must be one of"),
    ):
        with pytest.raises(ValueError, match=said):
            Recorded(**changes)
    assert recredited(without_values, "grpo")[0]["advantages"] == pytest.approx(
        [of_a2tgpo[0]["outcome_advantage"]] * len(of_a2tgpo[0]["turns"])
    )


def test_outcomes_that_were_shaped_are_noticed(tokenizer, tmp_path):
    records = recorded(tokenizer, tmp_path, "gtpo", **SETTINGS["gtpo"])
    with pytest.raises(ValueError, match="Outcomes of step 1 are shaped"):
        recredited(records, "grpo")


def test_unscored_rollouts_do_not_count_as_shaped(of_a2tgpo):
    # Three alike, with an advantage of 0, like that of an unscored rollout.
    alike = [{**record, "outcome": 1.0, "outcome_advantage": 0.0} for record in of_a2tgpo[:3]]
    unscored = {**of_a2tgpo[3], "outcome": None, "outcome_advantage": 0.0, "advantages": [], "excluded": True}
    found = recredited([*alike, unscored], "grpo")
    assert [set(record["advantages"]) for record in found] == [{0.0}, {0.0}, {0.0}, set()]


def test_recredit_uses_the_recorded_run_settings(of_a2tgpo):
    found, unscaled = (recredited(of_a2tgpo, "gigpo", Recorded(scale_rewards=scale)) for scale in ("group", "none"))
    assert [record["advantages"] for record in found] != [record["advantages"] for record in unscaled]
    # A floor for log-probabilities holds for probabilities as well. A floor above all gains leaves no scores.
    by_paper, by_none = (recredited(of_a2tgpo, "a2tgpo_paper", Recorded(gain_floor=floor)) for floor in (1e-4, 1e3))
    scores, none = (
        [score for record in found for score in record["scores"] if score] for found in (by_paper, by_none)
    )
    assert scores and not none
    assert recredited(of_a2tgpo, "a2tgpo", Recorded(gain_floor=0.12))
    without_gains = Recorded(gain_floor=0.12, gain_measure="probability")
    assert recredited(of_a2tgpo, "grpo", without_gains) == recredited(of_a2tgpo, "grpo")


def test_recredit_joins_ranks_and_separates_batches_and_runs(of_a2tgpo):
    # Each group of four is split between two ranks; the same batch comes a second time, and again in another run.
    by_rank = [{**record, "rank": i % 4 // 2} for i, record in enumerate(of_a2tgpo)]
    ranks = [[record for record in by_rank if record["rank"] == rank] for rank in (0, 1)]
    second = [[{**record, "batch": 2} for record in of_rank] for of_rank in ranks]
    other = [{**record, "read_from": "other"} for record in of_a2tgpo]
    found = recredited([*ranks[0], *second[0], *ranks[1], *second[1], *other], "igpo")
    expected = [record["advantages"] for record in recredited(of_a2tgpo, "igpo")]
    assert [record["advantages"] for record in found] == expected * 3


def test_groups_of_the_same_number_in_different_batches_are_separate(of_a2tgpo):
    batches = [[{**record, "batch": n, "group": 0} for record in of_a2tgpo[4 * n - 4 : 4 * n]] for n in (1, 2)]
    found = recredited([*batches[0], *batches[1]], "a2tgpo")
    alone = [record for batch in batches for record in recredited(batch, "a2tgpo")]
    assert [record["advantages"] for record in found] == [record["advantages"] for record in alone]


def test_recredit_converts_probability_gains_to_log_probability_gains(of_a2tgpo, tokenizer, tmp_path):
    of_paper = recorded(tokenizer, tmp_path, "a2tgpo_paper")
    found = recredited(of_paper, "a2tgpo", Recorded(gain_measure="probability"))
    for one, other in zip(found, of_a2tgpo, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-2)  # converted through a logarithm


def test_recredit_reads_environment_turn_rewards_from_records():
    # z of the first turns: 0.5 and -0.5 -> 1 and -1
    records = [
        {"step": 1, "group": 0, "outcome": 0.0, "outcome_advantage": 0.0, "advantages": [0.0, 0.0]}
        | {"turns": [{"calls": [], "status": "ok", "reward": reward}, {"calls": [], "status": "ok", "reward": None}]}
        for reward in (0.5, -0.5)
    ]
    found = recredited(records, "mt_grpo")
    assert [record["advantages"] for record in found] == [
        pytest.approx([1, 0], abs=1e-4),
        pytest.approx([-1, 0], abs=1e-4),
    ]
