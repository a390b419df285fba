"""Methods side by side: areas under learning curves, intervals over seeds, and the runs that they are of."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from a2tgpo_trl.cli import main
from a2tgpo_trl.cli.compare import _check
from a2tgpo_trl.recipe.recipe import MODELS
from a2tgpo_trl.report.comparison import area, compare, comparison_table, read_curve
from a2tgpo_trl.report.seeds import Spread
from a2tgpo_trl.study.runs import identity


def test_the_area_is_the_mean_height_between_evaluations():
    # 10 steps at 0.3 and 10 at 0.6 on average.
    assert area([(0, 0.2), (10, 0.4), (20, 0.8)]) == pytest.approx(0.45)
    # Uneven steps: (5 x 1 + 15 x 0) / 20
    assert area([(0, 1.0), (5, 1.0), (5, 0.0), (20, 0.0)]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="two evaluations at least"):
        area([(0, 0.2)])


def test_an_interval_over_seeds_is_students():
    # Mean 2, deviation 1, t of two degrees of freedom 4.303: half-width 4.303 / sqrt(3) = 2.484
    assert Spread.of([1, 2, 3]).half == pytest.approx(2.484, abs=1e-3)
    assert str(Spread.of([1, 2, 3])) == "2.000 ± 2.484" and str(Spread.of([0.5])) == "0.500"


def test_differences_are_taken_seed_by_seed():
    flat = {seed: [(0, height), (10, height)] for seed, height in enumerate([0.1, 0.5, 0.9])}
    higher = {seed: [(0, curve[0][1]), (10, curve[0][1] + 0.2)] for seed, curve in flat.items()}
    results = compare({"grpo": flat, "gtpo": higher})
    # The seeds lie far apart, and each gains 0.1.
    assert results["gtpo"]["area, less that of grpo"].mean == pytest.approx(0.1)
    assert results["gtpo"]["area, less that of grpo"].half == pytest.approx(0.0, abs=1e-9)
    assert results["gtpo"]["area"].half > 0.5 and "area, less that of grpo" not in results["grpo"]
    assert (results["gtpo"]["start"].mean, results["gtpo"]["end"].mean) == pytest.approx((0.5, 0.7))


def test_names_are_whole_in_a_table_of_any_width(capsys):
    names = ["grpo", "my_own_methods_of_credit.py:discounted_turns_of_the_search"]
    results = compare({name: {0: [(0, 0.1), (5, 0.2)], 1: [(0, 0.1), (5, 0.2)]} for name in names})
    Console(width=60).print(comparison_table(results, "held-out"))
    rows = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(rows).endswith(names[1])


def test_a_curve_is_read_from_what_a_run_leaves(tmp_path):
    history = [
        {"step": 1, "loss": 0.1},
        {"step": 0, "eval_rewards/f1/mean": 0.3},
        {"step": 5, "eval_rewards/f1/mean": 0.4},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert read_curve(tmp_path, "f1") == [(0, 0.3), (5, 0.4)]
    with pytest.raises(ValueError, match="no eval_rewards/exact_match/mean. It has eval_rewards/f1/mean"):
        read_curve(tmp_path, "exact_match")


class Rewarding:
    """An environment that says what its turns earn."""

    turn_reward: float | None = None

    def reset(self, **row) -> None:
        pass

    def look(self) -> str:
        """Look around."""
        return "nothing"


def test_rewards_of_turns_may_be_those_of_an_environment(tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"base: quickstart\nenvironment_factory: {__file__}:Rewarding\n")
    args = SimpleNamespace(credit=["mt_grpo"], seeds=[0], output=tmp_path, every=5, overrides=[], reward="exact_match")
    assert _check(recipe, args)[0] == "exact_match"


def test_methods_and_seeds_are_named_once(capsys):
    assert main(["compare", "quickstart", "--credit", "grpo", "grpo"]) == 2
    assert "each method and each seed once" in capsys.readouterr().err
    assert main(["compare", "quickstart", "--credit", "grpo", "own.py:grpo"]) == 2
    assert "methods of different names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--credit", "grpo", "mt_grpo"], "credit mt_grpo needs turn rewards"),
        (["--credit", "grpo", "--reward", "bleu"], "--reward bleu: the task has exact_match, answer_format, f1"),
        (["--credit", "grpo", "grop"], "got 'grop'. Did you mean 'grpo'?"),
        (["--credit", "grpo", "--output_dir", "elsewhere"], "--output_dir: each run has its own"),
    ],
)
def test_what_would_fail_later_is_told_before_the_first_run(words, message, tmp_path, capsys):
    assert main(["compare", "quickstart", *words, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_run_is_another_once_its_settings_or_a_file_that_they_name_change(tmp_path):
    recipe, base = tmp_path / "recipe.yaml", tmp_path / "base.yaml"
    recipe.write_text("base: base.yaml\ntools: ['more.py:tool']\n")
    base.write_text("credit: own.py:method\nseed: 1\n")
    files = [tmp_path / name for name in ("own.py", "more.py", "words.py")]
    for file in files:
        file.write_text("1")
    words = [str(recipe), "--task", f"{tmp_path / 'words.py'}:make"]
    seen = [identity(words)]
    for file in (recipe, base):
        file.write_text("# a comment\n" + file.read_text())
        assert identity([*words, "--output_dir", str(tmp_path)]) == seen[-1]
        file.write_text(file.read_text() + f"max_{'steps' if file == base else 'completion_length'}: 7\n")
        seen.append(identity(words))
    for file in files:
        file.write_text("2")
        seen.append(identity(words))
    assert len(set(seen)) == 6
    assert identity([*words, "--seed", "2"]) not in seen


def test_a_run_is_another_once_the_weights_of_a_policy_that_comes_along_change(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "atlas-tiny", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    words = [str(tmp_path / "recipe.yaml")]
    Path(words[0]).write_text("model_name_or_path: atlas-tiny\n")
    seen = identity(words)
    assert identity(words) == seen
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert identity(words) != seen


@pytest.mark.slow
def test_two_methods_are_trained_and_compared_and_what_is_done_is_not_done_again(tmp_path, capfd):
    words = ["compare", "quickstart", "--credit", "grpo", "a2tgpo", "--seeds", "0", "--every", "1"]
    words += ["-o", str(tmp_path)]
    small = ["--max_steps", "1", "--eval_rows", "6", "--per_device_train_batch_size", "8"]
    small += ["--gradient_accumulation_steps", "1", "--task_kwargs", '{"train_questions": 8, "test_questions": 6}']
    assert main([*words, *small]) == 0
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [point[0] for point in found["curves"]["a2tgpo"]["0"]] == [0, 1]
    # The same seed begins with the same policy and draws, whichever the method.
    assert found["curves"]["a2tgpo"]["0"][0] == found["curves"]["grpo"]["0"][0]
    assert set(found["results"]["a2tgpo"]) == {"start", "end", "area", "area, less that of grpo"}
    capfd.readouterr()
    assert main([*words, *small]) == 0
    assert capfd.readouterr().out.count("is there already") == 2
    assert main([*words, *small, "--learning_rate", "-1"]) == 1
    assert "log.txt" in capfd.readouterr().err
