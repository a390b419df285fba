"""From recorded rollouts to weights of turn rewards: what goes with success, and whether rewarding it works."""

import json

import pytest
import yaml
from test_turn_rewards import call, record

from a2tgpo_trl.cli import main
from a2tgpo_trl.config import A2TGPOConfig
from a2tgpo_trl.credit import find_method, preset_of
from a2tgpo_trl.credit.calibration import calibrate, correlation
from a2tgpo_trl.credit.turn_rewards import KINDS


FAILED, GOOD = [call(status="tool_error")], [call()]


def rollout(prompt: str, passed: bool, *turns: list[dict]) -> dict:
    return {"prompt": prompt, "rewards": {"exact_match": float(passed), "f1": 0.5}, **record(*turns)}


def found(records, credit="hybrid", scale=0.2, threshold=0.1, kinds=KINDS) -> dict:
    switches = preset_of(find_method(credit)).switches
    chosen = {name: kind for name, kind in kinds.items() if name != "environment"}
    passed = {"passed": lambda one: one["rewards"]["exact_match"] >= 1}
    result = calibrate(records, chosen, find_method(credit), switches, **passed, scale=scale, threshold=threshold)
    return {kind.name: kind for kind in result}


def test_correlation_of_two_yes_or_no_variables():
    assert correlation([1, 1, 0, 0], [0, 0, 1, 1]) == pytest.approx(-1)
    # Means 1/4 and 1/2: covariance (3/4 x 1/2 + 1/4 x 1/4 x ...) = 1/8, deviations sqrt(3)/4 and 1/2.
    assert correlation([1, 0, 0, 0], [1, 1, 0, 0]) == pytest.approx(1 / 8 / (3**0.5 / 4 * 0.5))
    assert correlation([1, 1], [0, 1]) is None and correlation([0, 1], [1, 1]) is None


def test_a_kind_is_worth_its_correlation_with_success_if_that_is_large_enough():
    records = [
        rollout("a", True, GOOD, []),
        rollout("a", False, FAILED, []),
        rollout("b", True, GOOD, []),
        rollout("b", False, FAILED, GOOD, []),
    ]
    kinds = found(records)
    assert kinds["failed_call"].correlation == pytest.approx(-1) and kinds["failed_call"].weight == pytest.approx(-0.2)
    assert kinds["failed_call"].rollouts == 2 and kinds["failed_call"].mean_advantage < 0
    # Good calls: in three of four, of which two passed: 1/8 / (sqrt(3)/4 x 1/2) = 0.577; credited as they should be.
    assert kinds["read_only"].weight == pytest.approx(0.2 * 0.57735, abs=1e-4) and kinds["read_only"].agrees
    assert kinds["bad_format"].correlation is None and kinds["bad_format"].weight == 0
    assert found(records, threshold=0.6)["read_only"].weight == 0


def test_a_kind_whose_turns_would_be_credited_against_its_weight_is_left_out():
    # Over all prompts state-changing calls go with failure, for b needs them and is hard; those of prompt a that make
    # them pass.
    act = [call(changes_state=True)]
    only = {"state_changing": KINDS["state_changing"]}
    records = [rollout("a", True, act, []), rollout("a", False, GOOD, []), *[rollout("b", False, act, [])] * 4]
    records += [rollout("c", True, GOOD, [])] * 4
    kind = found(records, kinds=only, scale=0.01)["state_changing"]
    assert kind.correlation < 0 and kind.left_out and kind.weight == 0 and kind.mean_advantage > 0
    # With a weight that outdoes the outcome, it is credited as it should be.
    kind = found(records, kinds=only, scale=10)["state_changing"]
    assert not kind.left_out and kind.weight < 0 and kind.mean_advantage < 0


@pytest.mark.parametrize("passed", [True, False])
def test_a_kind_that_all_rollouts_of_a_prompt_have_is_compared_with_nothing(passed):
    act = [call(changes_state=True)]
    records = [rollout("a", passed, act, [])] * 2 + [rollout("b", not passed, GOOD, [])] * 2
    kind = found(records)["state_changing"]
    assert kind.weight == pytest.approx(0.2 if passed else -0.2)
    assert kind.mean_advantage == 0 and kind.agrees is None and not kind.left_out


def test_rollouts_of_two_files_are_no_group():
    one, other = rollout("a", True, GOOD, []), rollout("a", False, FAILED, [])
    assert found([one, other])["failed_call"].mean_advantage < 0
    apart = found([{**one, "file": "before"}, {**other, "file": "after"}])["failed_call"]
    assert apart.weight < 0 and apart.mean_advantage is None


def test_prompts_that_were_rolled_out_once_have_nothing_to_check_signs_by():
    kinds = found([rollout("a", True, GOOD, []), rollout("b", False, FAILED, [])])
    assert kinds["failed_call"].weight == pytest.approx(-0.2) and kinds["failed_call"].mean_advantage is None


def test_the_command_writes_what_a_recipe_includes(tmp_path, capsys):
    file, output = tmp_path / "rollouts.jsonl", tmp_path / "turn_rewards.yaml"
    rows = [
        rollout("a", True, GOOD, []),
        rollout("a", False, FAILED, []),
        {**rollout("b", False, []), "rewards": {"exact_match": None}},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.py").write_text(
        "def answered(record):\n    return [float(not t['calls']) for t in record['turns']]\n"
    )
    own = f"{tmp_path / 'own.py'}:answered"
    assert main(["calibrate", str(file), "-o", str(output), "--kinds", own]) == 0
    assert "2 rollouts, 50% with exact_match of 1" in capsys.readouterr().out
    weights = yaml.safe_load(output.read_text())["turn_rewards"]
    assert weights == {"failed_call": -0.2, "read_only": 0.2}
    assert A2TGPOConfig("unused", bf16=False, turn_rewards=str(output)).turn_rewards == weights
    assert (
        main(["calibrate", str(file), "-o", str(output), "--threshold", "1", "--scale", "0.5", "--success", "f1"]) == 0
    )
    assert yaml.safe_load(output.read_text())["turn_rewards"] == {}  # none reaches 1 in f1


@pytest.mark.parametrize(
    ("line", "words", "message"),
    [
        (None, [], "There is no file"),
        ({}, [], "no turns on record"),
        ({"turns": [{"calls": [{}]}]}, [], "of an earlier version"),
        ({"turns": [{"calls": []}]}, ["--success", "s"], "the rollouts have r"),
        ({"turns": [{"calls": []}]}, ["--scale", "0"], "--scale must be above"),
        ({"turns": [{"calls": []}], "rewards": {"r": None}}, [], "None of the rollouts was scored by r"),
    ],
)
def test_what_cannot_be_calibrated_is_told(line, words, message, tmp_path, capsys):
    file = tmp_path / "rollouts.jsonl"
    if line is not None:
        file.write_text(json.dumps({"prompt": "a", "rewards": {"r": 1}, **line}) + "\n")
    assert main(["calibrate", str(file), "-o", str(tmp_path / "out.yaml"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out.yaml").exists()
