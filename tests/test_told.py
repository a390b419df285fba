"""What a run tells its user: each important warning once; that nothing was learnt; which questions scores are for."""

import json
import logging
import math
import os
import signal
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.cli.pipe import print_table
from a2tgpo_trl.cli.study import check
from a2tgpo_trl.recipe.recipe import HELD_OUT, RecipeError, read_recipe
from a2tgpo_trl.report.nothing_to_learn import NothingToLearn
from a2tgpo_trl.report.progress import Display, OncePerPlace, quiet_libraries
from a2tgpo_trl.report.scores import Scores, score_table
from a2tgpo_trl.study.study import make_study
from a2tgpo_trl.train import main as train


TINY = [
    *("--model_name_or_path", "atlas-tiny", "--bf16", "false", "--use_cpu", "true", "--report_to", "none"),
    *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1", "--num_generations", "4"),
    *("--per_device_eval_batch_size", "4", "--max_completion_length", "24", "--save_strategy", "no"),
]
ATLAS = ["--task", "atlas", "--task_kwargs", '{"train_questions": 4, "test_questions": 2}', "--eval_rows", "0"]


def reward(tmp_path, body: str) -> list[str]:
    (tmp_path / "mine.py").write_text(f"def judge(completions, **_):\n    return {body}\n")
    return ["--reward_funcs", f"{tmp_path / 'mine.py'}:judge", "--output_dir", str(tmp_path / "run")]


# ---- warnings


def test_a_warning_of_trl_that_matters_is_shown_once(tmp_path, capsys):
    # TRL warns once per row of each batch that no reward function has scored: here 2 x 4. The handler remembers the
    # warnings shown in earlier tests.
    told = logging.getLogger("trl")
    told.handlers = [handler for handler in told.handlers if not isinstance(handler, OncePerPlace)]
    words = ["--max_steps", "2", "--credit", "grpo"]
    assert train([*TINY, *ATLAS, *words, *reward(tmp_path, "[None] * len(completions)")]) == 0
    assert capsys.readouterr().err.count("All reward functions returned None") == 1


def test_library_warnings_are_shown_once_per_place(capsys):
    handler = OncePerPlace()
    for place in (("a.py", 1), ("a.py", 1), ("a.py", 2), ("b.py", 1)):
        handler.handle(logging.LogRecord("trl.x", logging.WARNING, *place, "%s", (place,), None))
    assert capsys.readouterr().err.splitlines() == [f"trl.x: {p}" for p in (("a.py", 1), ("a.py", 2), ("b.py", 1))]
    quiet_libraries()
    quiet_libraries()
    assert sum(isinstance(handler, OncePerPlace) for handler in logging.getLogger("trl").handlers) == 1


def test_only_local_rank_0_shows_trl_warnings():
    code = """if True:
        import logging
        from a2tgpo_trl.report.progress import quiet_libraries
        quiet_libraries()
        logging.getLogger("trl.trainer").warning("all rewards are None")
        logging.getLogger("trl.trainer").error("it failed")
    """
    said = {}
    for rank in ("0", "1"):
        environment = {**os.environ, "LOCAL_RANK": rank}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        said[rank] = run.stderr
    assert [("are None" in said[rank], "it failed" in said[rank]) for rank in "01"] == [(True, True), (False, True)]


# ---- nothing learnt


@pytest.mark.parametrize(("body", "told"), [("[0.0] * len(completions)", 1), ("[*range(len(completions))]", 0)])
def test_run_with_nothing_to_learn_from_warns_once_at_its_end(body, told, tmp_path, caplog):
    words = ["--max_steps", "2", "--logging_steps", "5", "--credit", "grpo"]
    with caplog.at_level(logging.WARNING, "a2tgpo_trl"):
        assert train([*TINY, *ATLAS, *words, *reward(tmp_path, body)]) == 0
    said = [record.getMessage() for record in caplog.records if "next to nothing to learn from" in record.getMessage()]
    assert len(said) == told
    assert all("in 100% of the groups" in text and "mean reward of 0." in text for text in said)
    assert all("on_rollouts" in text and "num_generations" in text for text in said)


def test_a_resumed_run_is_judged_by_its_own_steps_and_an_interrupted_one_is_not(tmp_path, caplog):
    def said() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if "next to nothing" in record.getMessage()]
        caplog.clear()
        return lines

    (tmp_path / "mine.py").write_text(
        "import os, signal\n\n\ndef judge(completions, **_):\n"
        "    if os.environ.pop('A2TGPO_TEST_LEAVES', ''):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return [0.0] * len(completions)\n"
    )
    words = [*TINY, *ATLAS, "--max_steps", "2", "--save_strategy", "steps", "--credit", "grpo"]
    words += ["--reward_funcs", f"{tmp_path / 'mine.py'}:judge", "--output_dir", str(tmp_path / "run")]
    with caplog.at_level(logging.WARNING, "a2tgpo_trl"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("A2TGPO_TEST_LEAVES", "1")
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit):
                train(words)
        finally:
            signal.signal(signal.SIGTERM, handler)
        assert not said()
        assert train([*words, "--resume_from_checkpoint", "true"]) == 0
    (line,) = said()
    assert "Since step 1, from which it was resumed, this run had next to nothing to learn from" in line


def test_reported_mean_reward_covers_all_scored_batches(caplog):
    # The first batch was not scored, so the mean is the second's 0.25. A run without any score has no mean.
    nothing, something = (NothingToLearn(interrupted=lambda: False) for _ in range(2))
    something.see(1.0, math.nan)
    something.see(1.0, 0.25)
    nothing.see(1.0, math.nan)
    with caplog.at_level(logging.WARNING, "a2tgpo_trl"):
        something.on_train_end(None, None, None)
        nothing.on_train_end(None, None, None)
    assert "with a mean reward of 0.25. Read" in caplog.messages[0]
    assert "and no rollout was scored. Read" in caplog.messages[1]


# ---- which questions scores are for


@pytest.fixture
def rows(tmp_path):
    row = '{{"prompt": [{{"role": "user", "content": "question {i}"}}], "answer": "Nairobi"}}\n'
    (tmp_path / "rows.jsonl").write_text("".join(row.format(i=i) for i in range(6)))
    return ["--dataset_name", str(tmp_path / "rows.jsonl"), "--reward_funcs", "exact_match"]


def test_train_and_test_split_may_be_slices_of_one_file(rows, tmp_path):
    words = [*TINY, *rows, "--dataset_train_split", "train[2:]", "--dataset_test_split", "train[:2]"]
    recipe = read_recipe([*words, "--output_dir", str(tmp_path / "run")])
    assert recipe.questions == HELD_OUT and "questions" in vars(recipe)  # cached: rows are read once
    contents = [
        [row["prompt"][0]["content"][-1] for row in part] for part in (recipe.task.train_dataset, recipe.test_dataset)
    ]
    assert contents == [["2", "3", "4", "5"], ["0", "1"]] and recipe.questions == HELD_OUT
    with pytest.raises(RecipeError, match=r"no split 'test\[:2\]'; it has train. For some .* write train\[:50\]"):
        read_recipe([*TINY, *rows, "--dataset_test_split", "test[:2]", "--output_dir", str(tmp_path / "run")])


def test_scores_on_rows_that_are_trained_on_are_not_called_held_out(rows, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    words = ["--dataset_train_split", "train[:4]", "--dataset_test_split", "train[3:5]", "--max_steps", "1"]
    assert train([*TINY, *rows, *words, "--logging_steps", "1", "--output_dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "2 questions, 1 of them trained on" in out and "held-out" not in out
    labels = {
        text.get_text() for axes in drawn[0].axes for text in (axes.get_legend() or axes).findobj(match=_is_text)
    }
    assert not any("held out" in label for label in labels)


def _is_text(artist) -> bool:
    return hasattr(artist, "get_text")


def test_study_on_trained_rows_warns(rows, tmp_path, capsys):
    keys = {"dataset_name": rows[1], "dataset_train_split": "train[:4]", "dataset_test_split": "train[3:5]"}
    keys |= {"model_name_or_path": "atlas-tiny", "reward_funcs": ["exact_match"], "bf16": False}
    (tmp_path / "mine.yaml").write_text(json.dumps(keys))
    content = {"recipe": "mine.yaml", "seeds": [0], "cells": {"grpo": {"credit": "grpo"}}}
    check(make_study(tmp_path / "study.yaml", content))
    assert "the report says held-out, but the scores are on questions, 1 of them trained on" in capsys.readouterr().err


def test_compare_without_test_questions_names_dataset_test_split(rows, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"dataset_name: {rows[1]}\nmodel_name_or_path: atlas-tiny\nreward_funcs: [exact_match]\n")
    assert cli(["compare", str(recipe), "--credit", "grpo", "-o", str(tmp_path / "out"), "--bf16", "false"]) == 2
    assert "name a dataset_test_split (train[:50])" in capsys.readouterr().err


# ---- precision


def test_where_no_gpu_computes_in_bfloat16_the_key_to_set_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match=r"Set bf16: false \(in Python, bf16=False\)"):
        A2TGPOConfig(str(tmp_path))
    assert train([*ATLAS, "--model_name_or_path", "atlas-tiny", "--output_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "bf16: false" in message and "bf16/gpu" not in message and "Traceback" not in message


# ---- text of data, and names of folders


def test_text_in_brackets_is_shown_as_it_is(capsys):
    names = ("[easy]", "[/b]", "[link=http://x]l[/link]", ":smile:")
    records = [{"row": i, "set": name, "tool_turns": 0, "rewards": {"f1": 1.0}} for i, name in enumerate(names)]
    table = score_table({"[red]run": Scores.of(records, "set")}, "4 [bold]questions")
    display = Display()
    display.line(table)
    display.line("Written to outputs/run[lr=1e-4]")
    with display.bar("evaluating run[/b]", 1):
        pass
    print_table(table)
    *tables, line = capsys.readouterr().out.partition("Written to outputs/run[lr=1e-4]")[::2]
    for told in (*tables, line):
        assert all(f"set {name} " in told for name in names) and "[red]run" in told and "4 [bold]questions" in told
