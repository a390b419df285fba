"""Methods side by side: the study that `a2tgpo compare` makes from its words."""

import json

import pytest

from a2tgpo_trl.cli import build_parser, main
from a2tgpo_trl.cli.compare import content_of
from a2tgpo_trl.cli.study import check
from a2tgpo_trl.study.results import Results
from a2tgpo_trl.study.study import Run, make_study, read_study


SMALL = {"train_questions": 8, "test_questions": 6}


def content(*words):
    args, args.overrides = build_parser().parse_known_args(["compare", *words])
    return content_of(args)


def test_compare_options_make_a_study_with_a_cell_per_method(tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text("base: quickstart\n")
    monkeypatch.chdir(tmp_path)
    words = ["--credit", "grpo", "methods/own.py:discounted", "--seeds", "3", "4", "--every", "2"]
    found = content("own.yaml", *words, "--max_steps", "6", "--task_kwargs", '{"seed": 1}')
    assert found["cells"] == {"grpo": {"credit": "grpo"}, "discounted": {"credit": "methods/own.py:discounted"}}
    assert (found["seeds"], found["every"], found["reward"]) == ([3, 4], 2, "exact_match")
    study = make_study(tmp_path / "out" / "own.yaml", found)
    assert study.recipe == tmp_path / "own.yaml" and study.against == "grpo"
    settings = study.settings_of(Run("grpo", 4))
    assert (settings["max_steps"], settings["eval_steps"], settings["seed"]) == (6, 2, 4)
    assert content("quickstart", "--credit", "grpo", "--reward", "f1")["reward"] == "f1"


class Rewarding:
    """An environment that declares what its turns earn."""

    turn_reward: float | None = None

    def reset(self, **row) -> None:
        pass

    def look(self) -> str:
        """Look around."""
        return "nothing"


def test_rewards_of_turns_may_be_those_of_an_environment(tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"base: quickstart\nenvironment_factory: {__file__}:Rewarding\n")
    check(make_study(tmp_path / "study.yaml", content(str(recipe), "--credit", "mt_grpo")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grpo", "grpo"], "name each method once"),
        (["grpo", "own.py:grpo"], "give methods of your own different names"),
        (["grpo", "--seeds", "0", "0"], "name each seed only once"),
        (["grpo", "mt_grpo"], "cell 'mt_grpo' needs turn rewards"),
        (["grpo", "--reward", "bleu"], "reward is 'bleu', but the task has exact_match, answer_format, f1"),
        (["grpo", "grop"], "got 'grop'. Did you mean 'grpo'?"),
        (["grpo", "--output_dir", "elsewhere"], "a2tgpo compare sets --output_dir itself for each run"),
        (["grpo", "--base", "qa/qwen3_8b"], "--base: a comparison takes a single recipe"),
        (["grpo", "--crdit", "1"], "there is no option '--crdit'. Did you mean 'credit'?"),
        (["grpo", "--jobs", "0"], "argument --jobs: must be a whole number of at least 1, got '0'"),
    ],
)
def test_invalid_comparison_is_an_error_before_the_first_run(words, message, tmp_path, capsys):
    assert main(["compare", "quickstart", "--credit", *words, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_foreign_study_file_is_left_unchanged(tmp_path, capsys):
    (tmp_path / "quickstart.yaml").write_text("learning_rate: 1.0\n")
    assert main(["compare", "quickstart", "--credit", "grpo", "-o", str(tmp_path)]) == 2
    assert "quickstart.yaml was not written by a comparison" in capsys.readouterr().err
    assert (tmp_path / "quickstart.yaml").read_text() == "learning_rate: 1.0\n"


@pytest.mark.slow
def test_two_methods_are_compared_and_finished_runs_are_reused(tmp_path, capfd):
    words = ["compare", "quickstart", "--seeds", "0", "--every", "1", "-o", str(tmp_path)]
    words += ["--max_steps", "1", "--eval_rows", "6", "--per_device_train_batch_size", "8"]
    words += ["--gradient_accumulation_steps", "1", "--task_kwargs", json.dumps(SMALL)]
    both = [*words, "--credit", "grpo", "a2tgpo"]
    assert main(both) == 0
    assert "area, less that of" in capfd.readouterr().out  # the table
    study = read_study(tmp_path / "quickstart.yaml")
    curves = [Results(study.results).curve(Run(cell, 0), "held_out/exact_match") for cell in ("grpo", "a2tgpo")]
    assert [step for step, _ in curves[1]] == [0, 1]
    # The same seed begins with the same policy and draws for any method.
    assert curves[0][0] == curves[1][0]
    assert "| a2tgpo | 1 |" in study.report.read_text() and study.picture.is_file()
    assert len(list(tmp_path.rglob("trainer_state.json"))) == 2  # of runs that can be plotted and viewed
    assert main(both) == 0
    assert " s\n" not in capfd.readouterr().out
    # One more method is one more run.
    assert main([*both, "igpo"]) == 0
    out = capfd.readouterr().out
    assert "igpo/own/0: " in out and "grpo/own/0: " not in out.replace("a2tgpo/own/0", "").replace("igpo/own/0", "")
    assert main([*both, "--learning_rate", "-1"]) == 1
    assert "log.txt" in capfd.readouterr().err
