"""The command line from a recipe to its results, a user's own files, trackers, progress lines and pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib.image import imread
from places import ROOT

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.evaluation import main as evaluation
from a2tgpo_trl.recipe.program import run_recipe
from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.report.plots import plot_runs
from a2tgpo_trl.report.progress import quiet_libraries, step_line
from a2tgpo_trl.train import main as train
from a2tgpo_trl.train import write_recipe


SHORT = [
    *("--max_steps", "2"),
    *("--per_device_train_batch_size", "16"),
    *("--gradient_accumulation_steps", "1"),
    *("--per_device_eval_batch_size", "12"),
    *("--eval_rows", "12"),
    *("--task_kwargs", '{"train_questions": 16, "test_questions": 12}'),
]


def logged(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of the quickstart as a user starts it: its folder and its output."""
    folder = tmp_path_factory.mktemp("cli") / "short"
    words = [sys.executable, "-m", "a2tgpo_trl", "train", "quickstart", *SHORT, "--output_dir", str(folder)]
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder.parent, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout, done.stderr


def test_train_prints_a_line_per_step_a_table_and_no_warnings(run):
    folder, out, err = run
    steps = [line for line in out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/2", "2/2"]
    for word in ("reward", "exact match", "turns", "gain", "seconds"):
        assert all(word in line for line in steps)
    assert "before" in out and "after" in out and "hops 4" in out
    assert str(folder) in out.replace("\n", "")
    assert len(out.splitlines()) < 25
    assert err == ""


def test_printed_table_matches_the_evaluation_files(run):
    folder, out, _ = run
    for when in ("before", "after"):
        scores = json.loads((folder / "evaluation" / f"{when}.json").read_text())
        found = scores["everything"]["exact_match"]
        records = [json.loads(line) for line in (folder / "evaluation" / f"{when}.jsonl").read_text().splitlines()]
        assert len(records) == 12
        assert found["mean"] == pytest.approx(sum(record["rewards"]["exact_match"] for record in records) / 12)
        assert f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})" in out
    assert imread(folder / "learning_curve.png").shape[0] > 300
    assert (folder / "model.safetensors").exists()


def test_trained_policy_can_be_evaluated_from_its_folder(run, tmp_path):
    folder, _, _ = run
    words = ["quickstart", *SHORT, "--model_name_or_path", str(folder), "--output_dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "a2tgpo_trl", "eval", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "evaluation" / "short" / "scores.json").exists()
    # The same policy, settings and seed as in the evaluation after training.
    again, after = (
        [json.loads(line)["completion"] for line in file.read_text().splitlines()]
        for file in (tmp_path / "evaluation" / "short" / "rollouts.jsonl", folder / "evaluation" / "after.jsonl")
    )
    assert again == after


def test_whole_recipe_file_equals_the_given_recipe(run, tmp_path):
    folder, _, _ = run
    elsewhere = ["--output_dir", str(tmp_path)]
    found = read_recipe(["--config", str(folder / "whole_recipe.yaml"), *elsewhere])
    given = read_recipe(["--config", "quickstart", *SHORT, *elsewhere])
    assert (found.run, found.model, found.args.to_dict()) == (given.run, given.model, given.args.to_dict())


def test_kept_recipe_leaves_out_secrets(tmp_path, monkeypatch):
    for name in ("A2TGPO_TEST_KEY", "A2TGPO_TEST_KIND"):
        monkeypatch.setenv(name, "")  # reading a recipe sets its variables; they are restored afterwards
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: quickstart\nenv: {A2TGPO_TEST_KEY: SECRET, A2TGPO_TEST_KIND: small}\nrecord_tokens: true\n"
    )
    words = ["--config", str(recipe), "--output_dir", str(tmp_path), "--hub_token", "hf_SECRET"]
    write_recipe(tmp_path, read_recipe(words))
    text = (tmp_path / "whole_recipe.yaml").read_text()
    assert "SECRET" not in text and "# left out, since these are secrets: env.A2TGPO_TEST_KEY, hub_token" in text
    assert (
        yaml.safe_load(text)["env"] == {"A2TGPO_TEST_KIND": "small"} and yaml.safe_load(text)["record_tokens"] is True
    )


def test_whole_recipe_omits_run_options_and_resuming_keeps_the_first(tmp_path):
    def write(*words: str) -> dict:
        recipe = read_recipe(["--config", "quickstart", "--output_dir", str(tmp_path), *words])
        write_recipe(tmp_path, recipe)
        return yaml.safe_load((tmp_path / "whole_recipe.yaml").read_text())

    first = write("--overwrite", "true", "--max_steps", "3")
    assert first["max_steps"] == 3 and "overwrite" not in first
    assert write("--resume_from_checkpoint", "true", "--max_steps", "4") == first
    assert write("--max_steps", "4")["max_steps"] == 4
    (tmp_path / "whole_recipe.yaml").write_text("mine: 1\n")
    with pytest.raises(ValueError, match="did not write, or that were changed since: whole_recipe.yaml"):
        write("--max_steps", "5")


def test_finished_run_is_not_overwritten(run, capsys):
    folder, _, _ = run
    before = (folder / "trainer_state.json").read_bytes()
    assert train(["--config", "quickstart", *SHORT, "--output_dir", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "--resume_from_checkpoint" not in message  # it left no checkpoint
    assert "already holds a run" in message and "--overwrite true" in message
    assert (folder / "trainer_state.json").read_bytes() == before


def test_adapter_run_can_be_evaluated_and_overwritten_by_full_weights(tmp_path):
    folder = tmp_path / "adapted"
    words = ["--config", "quickstart", *SHORT, "--max_steps", "1", "--output_dir", str(folder)]
    lora = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "all-linear", "--learning_rate", "1e-2"]
    assert train([*words, *lora]) == 0
    assert (folder / "adapter_config.json").exists() and not (folder / "model.safetensors").exists()
    evaluated = ["--config", "quickstart", *SHORT, "--model_name_or_path", str(folder), "--output_dir", str(tmp_path)]
    assert evaluation([*evaluated]) == 0
    again, after = (
        [json.loads(line)["completion"] for line in file.read_text().splitlines()]
        for file in (tmp_path / "evaluation" / "adapted" / "rollouts.jsonl", folder / "evaluation" / "after.jsonl")
    )
    assert again == after

    assert train([*words, "--eval_rows", "0", "--overwrite", "true"]) == 0
    assert (folder / "model.safetensors").exists() and not list(folder.glob("adapter*"))
    assert not (folder / "evaluation").exists()


def test_interrupted_run_resumes_from_its_last_checkpoint(tmp_path, capsys):
    words = ["--config", "quickstart", *SHORT, "--eval_rows", "0", "--save_strategy", "steps", "--save_steps", "1"]
    assert train([*words, "--max_steps", "1", "--output_dir", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "trainer_state.json").unlink()  # as if it had been killed after its checkpoint
    (tmp_path / "run" / "model.safetensors").unlink()
    words += ["--output_dir", str(tmp_path / "run")]
    assert train(words) == 2 and "--resume_from_checkpoint true" in capsys.readouterr().err
    assert train([*words, "--resume_from_checkpoint", "true"]) == 0
    assert [step["step"] for step in logged(tmp_path / "run") if "reward" in step] == [1, 2]


MINE = """
from pathlib import Path

from a2tgpo_trl.tools import tool

DOWN = Path(__file__).with_name("down")


def up():
    if DOWN.exists():
        raise ConnectionError("refused")


@tool(check=up, backoff=0.01)
def search(query: str) -> str:
    '''Search the encyclopedia.

    Args:
        query: What to look for.

    Returns:
        The documents that fit best.
    '''
    up()
    return "No results."


def reward(completions, trainer_state, **_):
    if trainer_state.global_step == 1 and not DOWN.with_name("mended").exists():
        DOWN.touch()  # the server goes down after the second batch
    return [float(len(completion)) for completion in completions]
"""


def test_run_stopped_by_a_tool_reports_it_in_one_line_and_resumes(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    words = ["--config", "quickstart", *SHORT, "--max_steps", "3", "--eval_rows", "0", "--outage_patience", "0.1"]
    words += ["--per_device_train_batch_size", "8", "--max_completion_length", "160"]
    words += ["--tools", str(tmp_path / "mine.py:search"), "--reward_funcs", str(tmp_path / "mine.py:reward")]
    words += ["--output_dir", str(tmp_path / "run"), "--save_strategy", "steps", "--save_steps", "100"]
    assert train(words) == 1
    message = capsys.readouterr().err
    assert "stopped: The tool search is down" in message and "ConnectionError: refused" in message
    assert "checkpoint-2: fix the problem and resume from there" in message and "Traceback" not in message
    assert train([*words, "--resume_from_checkpoint", "true"]) == 1
    assert "Tools are down before the first step. search: Conn" in capsys.readouterr().err
    (tmp_path / "mended").touch()
    (tmp_path / "down").unlink()
    assert train([*words, "--resume_from_checkpoint", "true"]) == 0
    assert [entry["step"] for entry in logged(tmp_path / "run") if "loss" in entry] == [1, 2, 3]


def test_keyboard_interrupt_is_one_line_and_exit_code_130(capsys):
    def interrupted(recipe):
        raise KeyboardInterrupt

    assert run_recipe(interrupted, ["--config", "quickstart"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_progress_bar_is_on_unless_disable_tqdm_is_set():
    quiet_libraries()
    assert read_recipe(["--config", "quickstart"]).args.disable_tqdm is False
    assert read_recipe(["--config", "quickstart", "--disable_tqdm", "true"]).args.disable_tqdm is True


def test_missing_layer_in_a_checkpoint_is_reported(run, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder, _, _ = run
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = load_file(broken / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.0.mlp" not in name}
    save_file(kept, broken / "model.safetensors", metadata={"format": "pt"})
    words = ["--config", "quickstart", *SHORT, "--model_name_or_path", str(broken), "--output_dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "a2tgpo_trl.evaluation", *words], capture_output=True, text=True)
    assert "layers.0.mlp" in done.stdout + done.stderr


@pytest.mark.slow
def test_the_same_recipe_runs_as_grpo_and_both_curves_are_in_one_picture(run, tmp_path, capsys):
    folder, _, _ = run
    grpo = tmp_path / "grpo"
    assert train(["--config", "quickstart", *SHORT, "--credit", "grpo", "--output_dir", str(grpo)]) == 0
    steps = [step for step in logged(grpo) if "reward" in step]
    assert len(steps) == 2 and not any("gain/mean" in step for step in steps)
    picture = tmp_path / "both.png"
    assert cli(["plot", str(folder), str(grpo), "-o", str(picture)]) == 0
    assert str(picture) in capsys.readouterr().out
    height, width, *_ = imread(picture).shape
    assert width > height > 300


def test_a_picture_shows_each_run_and_each_held_out_score(run, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self) or save(self, *args, **kwargs)
    )
    folder, _, _ = run
    plot_runs({"one": folder, "two": folder}, tmp_path / "x.png")
    first = drawn[0].axes[0]
    assert [text.get_text() for text in first.get_legend().get_texts()] == [
        *("one, training", "two, training"),
        *("one, held out (intervals over questions)", "two, held out (intervals over questions)"),
    ]
    means = [json.loads((folder / "evaluation" / f"{when}.json").read_text()) for when in ("before", "after")]
    expected = [scores["everything"]["exact_match"]["mean"] for scores in means]
    points = [line.get_ydata().tolist() for line in first.lines if line.get_marker() in ("o", "s")]
    assert points == [expected, expected]


def test_plot_of_a_run_without_exact_match_shows_reward_and_turns(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    steps = [{"step": i, "reward": 2.0 + i, "turns/mean": 3.0 + i} for i in (1, 2)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": steps}))
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    plot_runs({"mine": tmp_path}, tmp_path / "x.png")
    reward, turns = drawn[0].axes
    assert (reward.get_title(), turns.get_title()) == ("reward", "turns per rollout")
    assert turns.get_ylim()[1] >= 5.0 and reward.get_ylim()[1] >= 4.0


def test_plotting_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    assert cli(["plot", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_a_users_own_tool_reward_and_questions_train_through_the_command_line(tmp_path):
    for name in ("own_tool.py", "own_tool.jsonl", "own_tool.yaml"):
        (tmp_path / name).write_text((ROOT / "recipes" / name).read_text())
    words = [
        *("--config", str(tmp_path / "own_tool.yaml")),
        *("--model_name_or_path", "atlas-tiny"),
        *("--bf16", "false"),
        *("--max_steps", "1"),
        *("--max_completion_length", "64"),
        *("--output_dir", str(tmp_path / "out")),
    ]
    assert train(words) == 0
    (step,) = [step for step in logged(tmp_path / "out") if "reward" in step]
    assert 0 <= step["rewards/brevity/mean"] <= 1 and "rewards/exact_match/mean" in step


def test_a_steps_line_shows_what_was_logged():
    line = step_line(3, 40, {"reward": 0.5, "turns/mean": 3.26, "gain/mean": 0.1, "step_time": 5.04, "loss": "?"})
    assert line == "step  3/40  reward 0.50  turns 3.3  gain +0.10  seconds 5.0"


def test_a_mistake_in_a_recipe_is_one_line_and_exit_code_2(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("learning_rat: 1.0\n")
    done = subprocess.run([sys.executable, "-m", "a2tgpo_trl", "train", str(file)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"a2tgpo: error: {file}: there is no key 'learning_rat'. Did you mean 'learning_rate'?\n"


def test_import_noise_of_bitsandbytes_is_dropped_and_other_warnings_are_kept():
    code = (
        "import logging, a2tgpo_trl\n"
        "log = logging.getLogger('bitsandbytes.backends.cpu.ops')\n"
        "log.warning('Failed to load CPU gemm_4bit_forward from kernels-community: %s.', 'no kernels')\n"
        "log.warning('this base is slow')\n"
        "log.error('this base is broken')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines() == ["this base is slow", "this base is broken"]


def test_importing_what_a_run_imports_writes_nothing_to_the_terminal():
    code = "import a2tgpo_trl, bitsandbytes, deepspeed; from a2tgpo_trl import A2TGPOTrainer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_trainer_that_cannot_be_built_is_one_line_and_exit_code_2(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": [{"role": "user", "content": "q"}], "solution": "a"}\n')
    file = tmp_path / "recipe.yaml"
    text = f"model_name_or_path: atlas-tiny\ndataset_name: rows.jsonl\nbf16: false\noutput_dir: {tmp_path}\n"
    file.write_text(text + "reward_funcs: [answer_format]\n")
    assert train(["--config", str(file)]) == 2
    assert f"{file}: The training data set has no column 'answer'" in capsys.readouterr().err


def test_an_error_while_training_keeps_its_trace(tmp_path):
    (tmp_path / "mine.py").write_text("def broken(completions, **kwargs):\n    raise ValueError('from a reward')\n")
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"model_name_or_path: atlas-tiny\ntask: atlas\nbf16: false\noutput_dir: {tmp_path}/out\n"
        "task_kwargs: {train_questions: 8}\neval_rows: 0\nmax_completion_length: 8\nreward_funcs: [mine.py:broken]\n"
    )
    with pytest.raises(ValueError, match="from a reward"):
        train(["--config", str(file)])


def test_an_unknown_recipe_is_exit_code_2(capsys):
    assert cli(["train", "quickstat"]) == 2
    assert "Did you mean 'quickstart'" in capsys.readouterr().err
