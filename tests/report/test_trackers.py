"""What W&B, Trackio and TensorBoard get beside metrics: a table of turns, histograms of gains, how a run was made."""

import html
import json
import logging
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import wandb
import yaml
from tracker_files import environment, from_tensorboard, from_trackio, from_wandb, table_of_wandb
from training import TOOL_TURNS, make, settings, weights
from transformers.integrations import WandbCallback

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.report.provenance import commit, versions
from a2tgpo_trl.rollout.records import read_jsonl
from a2tgpo_trl.rollout.trackers import as_texts
from a2tgpo_trl.tracking import COLUMNS, TABLES, Tracking, markdown, rows_of, without_secrets


def git(folder, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *own, "-C", str(folder), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A folder with a commit, and a file that has changed since."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "-q")
    (folder / "mine.py").write_text("x = 1\n")
    git(folder, "add", "mine.py")
    git(folder, "commit", "-q", "-m", "first")
    (folder / "mine.py").write_text("x = 2\n")
    return folder


def records_of(folder) -> dict[int, list[dict]]:
    """Those of each step, which `record_every` has written."""
    return {
        int(file.name.split("-")[1]): read_jsonl(file) for file in sorted((folder / "rollouts").glob("*-rank-0.jsonl"))
    }


def expected_rows(records) -> list[dict]:
    """Numbers of each turn by the records, which have the keys of their own."""
    rows, rollouts = [], {}
    for record in records:
        rollout = rollouts[record["group"]] = rollouts.get(record["group"], -1) + 1
        for k, turn in enumerate(record["turns"]):
            tool_turn = k < len(record["gains"])
            rows.append(
                {
                    **{"step": record["step"], "group": record["group"], "rollout": rollout, "turn": k + 1},
                    **{"status": turn["status"], "outcome": record["outcome"]},
                    "value_before": record["values"][k] if k < len(record["values"]) else None,
                    "value_after": record["values"][k + 1] if tool_turn else None,
                    "gain": record["gains"][k] if tool_turn else None,
                    "z": record["scores"][k],
                    "advantage": record["advantages"][k],
                    "clip_scale": record["clip_scale"][k],
                    "result": "\n".join(call["result"] for call in turn["calls"]),
                }
            )
    return rows


def gains_of(records, turn: int) -> list[float]:
    return [record["gains"][turn - 1] for record in records if len(record["gains"]) >= turn]


def same_rows(found, records, most: int) -> bool:
    expected = expected_rows(records)[:most]
    assert len(found) == len(expected) > 0
    for row, of_records in zip(found, expected, strict=True):
        assert list(row) == list(COLUMNS)
        assert {name: row[name] for name in of_records} == pytest.approx(of_records)
    return True


# ---- W&B


def test_wandb_keeps_rows_of_turns_histograms_of_gains_and_how_the_run_was_made(tmp_path, repository, monkeypatch):
    for name, value in {**environment(tmp_path), "WANDB_CONSOLE": "off", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MY_API_KEY", "capital of France")  # which the first question of all has
    monkeypatch.chdir(repository)
    changes = {"report_to": "wandb", "record_every": 1, "log_completions": True, "run_name": "mine", "table_turns": 7}
    trainer = make(tiny.make_tokenizer(), A2TGPOConfig(**settings(tmp_path / "run", **changes)))
    trainer.run_facts["recipe"] = {"credit": "a2tgpo", "tools": {"headers": {"Authorization": "Bearer x"}}}
    try:
        trainer.train()
    finally:
        wandb.finish()
    kept, records = from_wandb(tmp_path), records_of(tmp_path / "run")

    tables = kept.series("train/rollouts/turns")
    assert len(tables) == len(records) == 2
    for table, of_step in zip(tables, records.values(), strict=True):
        rows = table_of_wandb(tmp_path, table)
        assert same_rows(rows, of_step, most=7)
        assert "the <MY_API_KEY> is?" in rows[0]["question"] and rows[0]["calls"] == "search('capital 0 0')"
        assert rows[2]["text"] == "<answer>Paris</answer>" and rows[2]["calls"] == rows[2]["result"] == ""
    for turn in (1, 2, 3):
        histograms = kept.series(f"train/gain/turn_{turn}/histogram")
        for histogram, of_step in zip(histograms, records.values(), strict=True):
            counts, edges = np.histogram(gains_of(of_step, turn), 32)
            assert histogram["values"] == counts.tolist() and histogram["bins"] == pytest.approx(edges.tolist())

    assert kept.config["git_commit"] == git(repository, "rev-parse", "HEAD") and kept.config["git_changed"] is True
    assert kept.config["recipe"] == {"credit": "a2tgpo", "tools": {"headers": {"Authorization": "<AUTHORIZATION>"}}}
    assert kept.config["versions"] == versions() and "trl" in versions()
    resolved = {name: value for name, value in trainer.args.to_dict().items() if value not in ({}, None)}
    assert {name: kept.config[name] for name in resolved} == json.loads(json.dumps(resolved))
    assert kept.config["credit"] == "a2tgpo" and kept.config["epsilon"] == 3e-3

    completions = [table_of_wandb(tmp_path, table) for table in kept.series("completions")]
    assert [len(rows) for rows in completions] == [4, 4, 4]  # TRL gives the last once more when training ends
    assert json.loads(completions[0][2]["completion"])[0]["content"] == "<answer>Paris</answer>"
    assert completions[0][0]["exact_match"] == 1.0 and len(json.loads(completions[0][0]["turn_advantages"])) == 3


def test_without_a_tracker_there_is_nothing_to_pay_and_training_is_the_same(tmp_path, monkeypatch):
    tokenizer = tiny.make_tokenizer()
    plain = make(tokenizer, A2TGPOConfig(**settings(tmp_path / "plain")))
    monkeypatch.setattr(plain, "_credited_records", None)
    plain.train()
    watched, trackers = tracked_by(Noting(), tokenizer, tmp_path / "watched")
    watched.train()
    assert len(trackers.sent) == 2
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(watched)[name]), name


# ---- what is handed over, and when


class Noting:
    """A tracker that keeps what it gets, or fails."""

    name = "noting"

    def __init__(self, fails_at: int | None = None):
        self.facts, self.sent, self._fails_at = [], [], fails_at

    def describe(self, facts) -> None:
        self.facts.append(facts)
        self._check(0)

    def send(self, step, rows, gains) -> None:
        self.sent.append((step, rows, gains))
        self._check(len(self.sent))

    def _check(self, number: int) -> None:
        if number == self._fails_at:
            raise ConnectionError("refused")


def tracked_by(tracker, tokenizer, folder, **changes):
    """A trainer with this tracker in the place of one of W&B."""
    trainer = make(tokenizer, A2TGPOConfig(**settings(folder, **changes)))
    tracking = next(one for one in trainer.callback_handler.callbacks if isinstance(one, Tracking))
    tracking._callbacks = lambda: [tracker]
    return trainer, tracker


@pytest.fixture(autouse=True)
def known_by_sight(monkeypatch):
    import a2tgpo_trl.tracking as tracking

    inner = tracking.tracker_of
    monkeypatch.setattr(tracking, "tracker_of", lambda one: one if isinstance(one, Noting) else inner(one))


def test_tables_are_as_many_as_are_bounded_evenly_spaced_and_the_same_after_resuming(tmp_path):
    assert TABLES == 50

    def due(max_steps: int, first: int = 0, batches_every: int = 1) -> list[int]:
        tracking = Tracking(10, True, lambda: [Noting()])
        tracking.on_train_begin(None, SimpleNamespace(max_steps=max_steps), None)
        found = []
        for step in range(first, max_steps, batches_every):
            if tracking.wants(step):
                assert tracking.wants(step)  # as often as it is asked
                found.append(step)
                tracking.put(step, [])
        return found

    assert due(40) == list(range(40)) and due(50) == list(range(50))
    assert due(101) == list(range(0, 101, 3))
    assert len(due(100_000)) == 50
    assert due(100, first=31) == [step for step in due(100) if step >= 31]
    assert due(100, batches_every=4) == list(range(0, 100, 4))  # every second step is due, and they come with batches


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_tracker_that_fails_gets_no_more_and_the_run_goes_on(fails_at, tmp_path, caplog):
    trainer, tracker = tracked_by(Noting(fails_at), tiny.make_tokenizer(), tmp_path, max_steps=4)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 4 and len(tracker.sent) == fails_at
    (said,) = [one.message for one in caplog.records if "noting did not take" in one.message]
    assert "ConnectionError: refused" in said and "the run goes on" in said


def test_rows_stop_at_the_most_of_them_and_none_of_them_is_asked_for_with_0(tmp_path):
    tokenizer = tiny.make_tokenizer()
    trainer, tracker = tracked_by(Noting(), tokenizer, tmp_path / "3", max_steps=1)
    assert trainer.args.table_turns == 64 and trainer.train()
    ((step, rows, gains),) = tracker.sent
    assert step == 1 and len(rows) == sum(turns + 1 for turns in TOOL_TURNS)
    assert {turn: len(values) for turn, values in gains.items()} == {1: 3, 2: 2, 3: 1}
    trainer, tracker = tracked_by(Noting(), tokenizer, tmp_path / "0", max_steps=1, table_turns=0)
    assert trainer.train() and [rows for _, rows, _ in tracker.sent] == [[]]


def test_gains_of_a_batch_are_those_of_all_its_rounds_and_only_those_of_the_last_batch():
    tracking = Tracking(0, True, lambda: [Noting()])
    tracking.on_train_begin(None, SimpleNamespace(max_steps=1), None)
    nan = torch.nan
    tracking.see_gains(torch.tensor([[9.0, 9.0]]), round=1)
    tracking.see_gains(torch.tensor([[1.0, 2.0], [3.0, nan]]), round=1)
    tracking.see_gains(torch.tensor([[4.0, nan, nan]]), round=2)
    assert {turn: values.tolist() for turn, values in tracking._gains.items()} == {1: [1.0, 3.0, 4.0], 2: [2.0]}


def test_other_processes_have_no_tracker_and_ask_nobody():
    tracking = Tracking(10, False, lambda: [Noting()])
    tracking.on_train_begin(None, SimpleNamespace(max_steps=1), None)
    assert not tracking.wants(0)


def test_a_table_of_which_nobody_takes_any_turn_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="table_turns has no effect unless report_to names one of wandb, trackio, ten"
    ):
        A2TGPOConfig(**settings(tmp_path, table_turns=10))
    A2TGPOConfig(**settings(tmp_path, table_turns=0))


def test_it_stands_right_behind_the_trackers_and_before_the_callbacks_of_users(tmp_path, monkeypatch):
    # A callback of a user's that evaluates before the first step has Trackio keep the config as it is then.
    monkeypatch.setenv("WANDB_MODE", "offline")
    mine = type("Mine", (WandbCallback.__mro__[1],), {})()
    args = A2TGPOConfig(**settings(tmp_path, report_to="wandb"))
    callbacks = make(tiny.make_tokenizer(), args, callbacks=[mine]).callback_handler.callbacks
    kinds = [type(one).__name__ for one in callbacks]
    assert kinds.index("Tracking") == kinds.index("WandbCallback") + 1 < kinds.index("Mine")


# ---- rows


RECORD = {
    "prompt": "q " * 800,
    "completion": "",
    "group": 4,
    "turns": [{"status": "ok", "calls": None, "text": "one key-12345", "read": "| <b>\n", "tokens_in": 1}],
    **{"scores": [None], "advantages": [0.5], "clip_scale": [1.0], "outcome": 1.0},
}


def test_texts_are_masked_before_they_are_cut_and_a_rollout_function_has_texts_of_its_own():
    (row,) = rows_of([{**RECORD, "prompt": "x" * 995 + "key-12345"}], 3, lambda text: text.replace("key-12345", "<K>"))
    assert row["question"] == "x" * 995 + "<K>" and row["text"] == "one <K>"
    assert (row["step"], row["group"], row["rollout"], row["turn"]) == (3, 4, 0, 1)
    assert (row["value_before"], row["gain"], row["calls"], row["result"]) == (None, None, "", "| <b>\n")
    (row,) = rows_of([RECORD], 3, str)
    assert row["question"].endswith(" ... (600 characters more)")


def test_in_markdown_a_cell_stays_a_cell():
    head, rule, line = markdown(list(rows_of([RECORD], 3, str))).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|") == len(COLUMNS) + 1
    assert "&#124; &lt;b&gt;<br>" in line


def test_settings_whose_names_are_those_of_secrets_are_left_out():
    settings = {"hub_token": "abc", "servers": [{"API_KEY": "abc", "url": "x"}], "tokenizer": "t", "max_tokens": 5}
    assert without_secrets(settings) == {
        **{"hub_token": "<HUB_TOKEN>", "servers": [{"API_KEY": "<API_KEY>", "url": "x"}], "tokenizer": "t"},
        "max_tokens": 5,
    }


def test_of_a_folder_without_git_there_is_no_commit_and_of_a_clean_one_no_change(tmp_path, repository):
    assert commit(tmp_path) == {"git_commit": None, "git_changed": None}
    git(repository, "stash", "-q")
    try:
        (repository / "results.txt").touch()  # is no part of the code
        assert commit(repository) == {"git_commit": git(repository, "rev-parse", "HEAD"), "git_changed": False}
    finally:
        git(repository, "stash", "pop", "-q")
    assert commit(repository)["git_changed"] is True


def test_completions_are_texts_and_numbers_and_a_prompt_comes_once_where_that_is_asked_for():
    logs = {
        "prompt": [[{"role": "user", "content": "a"}]] * 2,
        "completion": [[{"role": "assistant", "tool_calls": [1]}], "plain"],
        **{"rewards": {"f1": [0.5, None]}, "extra": {"turn_advantages": [[1.0], []]}, "advantages": [0.5, 1.0]},
    }
    frame = as_texts(logs, 3, unique_prompts=False)
    assert list(frame) == ["step", "prompt", "completion", "f1", "turn_advantages", "advantage"]
    assert frame["completion"].tolist() == ['[{"role": "assistant", "tool_calls": [1]}]', "plain"]
    assert frame["turn_advantages"].tolist() == ["[1.0]", "[]"] and frame["step"].tolist() == [3, 3]
    assert len(as_texts(logs, 3, unique_prompts=True)) == 1


# ---- all three, from the command line


RECIPE = """
base: quickstart
max_steps: 2
per_device_train_batch_size: 16
gradient_accumulation_steps: 1
eval_rows: 4
per_device_eval_batch_size: 4
task_kwargs: {train_questions: 16, test_questions: 12}
report_to: [wandb, trackio, tensorboard]
record_every: 1
table_turns: 30
"""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, repository):
    """A run of the quickstart with all trackers: the folder of theirs, and its own."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "mine.yaml").write_text(RECIPE)
    # In a process of its own: trackers keep global state, and W&B writes its file when the process ends.
    words = [
        sys.executable,
        "-m",
        "a2tgpo_trl",
        "train",
        str(folder / "mine.yaml"),
        "--output_dir",
        str(folder / "run"),
    ]
    variables = {**os.environ, **environment(folder)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=repository, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, folder / "run"


def logged_by(run) -> list[dict]:
    return [step for step in json.loads((run / "trainer_state.json").read_text())["log_history"] if "reward" in step]


def same_curves(kept, run) -> bool:
    steps = logged_by(run)
    names = {name for step in steps for name in step} - {"step", "epoch"}
    assert {"gain/turn_1/mean", "value/after_turn_1", "clip_scale/turn_1", "turns/mean", "alarms/calls"} <= names
    for name in names:
        expected = [step[name] for step in steps if name in step]
        assert kept.series(f"train/{name}") == pytest.approx(expected, rel=1e-5), name
    return True


def same_config(config, repository) -> bool:
    written = yaml.safe_load(RECIPE)
    assert config["git_commit"] == git(repository, "rev-parse", "HEAD") and config["git_changed"] is True
    assert config["versions"] == versions()
    assert config["recipe"].items() >= {name: written[name] for name in written if name != "base"}.items()
    assert config["recipe"]["num_generations"] == 8  # of the recipe that it is built on
    return True


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_tracker_keeps_every_curve_rows_histograms_and_config(tracker, tracked, repository):
    folder, run = tracked
    kept = from_wandb(folder) if tracker == "wandb" else from_trackio(folder)
    records = records_of(run)
    assert same_curves(kept, run) and same_config(kept.config, repository)
    assert kept.config["table_turns"] == 30 and kept.config["credit"] == "a2tgpo"
    tables = kept.series("train/rollouts/turns")
    for table, of_step in zip(tables, records.values(), strict=True):
        rows = table_of_wandb(folder, table) if tracker == "wandb" else table["_value"]
        assert same_rows(rows, of_step, most=30)
    for turn in (1, 2):
        for histogram, of_step in zip(kept.series(f"train/gain/turn_{turn}/histogram"), records.values(), strict=True):
            gains = gains_of(of_step, turn)
            assert sum(histogram["values"]) == len(gains)
            assert (histogram["bins"][0], histogram["bins"][-1]) == pytest.approx((min(gains), max(gains)))


@pytest.mark.slow
def test_tensorboard_keeps_them_as_scalars_histograms_and_texts(tracked, repository):
    _, run = tracked
    kept, events = from_tensorboard(run)
    records = records_of(run)
    assert same_curves(kept, run)
    config = {name: json.loads(kept.config[name][0]) for name in ("recipe", "git_commit", "git_changed", "versions")}
    assert same_config(config, repository)
    assert json.loads(kept.config["args"][0])["table_turns"] == 30
    for text, of_step in zip(kept.config["train/rollouts/turns"], records.values(), strict=True):
        lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
        assert tuple(lines[0]) == COLUMNS and len(lines) == 2 + 30
        expected = expected_rows(of_step)[:30]
        for line, row in zip(lines[2:], expected, strict=True):
            cells = dict(zip(COLUMNS, line, strict=True))
            assert (cells["turn"], cells["status"]) == (str(row["turn"]), row["status"])
            assert float(cells["advantage"]) == pytest.approx(row["advantage"], rel=1e-5)
            assert html.unescape(re.sub("<br>", "\n", cells["result"])).startswith(row["result"][:100])
    for turn in (1, 2):
        for event, of_step in zip(
            events.Histograms(f"train/gain/turn_{turn}/histogram"), records.values(), strict=True
        ):
            gains = gains_of(of_step, turn)
            found = event.histogram_value
            assert (found.num, found.min, found.max) == pytest.approx((len(gains), min(gains), max(gains)), rel=1e-5)
            assert found.sum == pytest.approx(sum(gains), rel=1e-4)


def test_a_tracker_that_is_not_installed_is_told_of_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(RuntimeError, match="WandbCallback requires wandb to be installed. Run `pip install wandb`"):
        make(tiny.make_tokenizer(), A2TGPOConfig(**settings(tmp_path, report_to="wandb")))
