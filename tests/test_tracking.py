"""What is sent to trackers, when, and how much; a tracker's failures do not stop the training."""

import datetime
import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from repositories import git, make_repository
from training import TOOL_TURNS, make, questions, settings, weights
from transformers.integrations import WandbCallback

import a2tgpo_trl.tracking
from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.report.provenance import commit
from a2tgpo_trl.rollout.trackers import as_texts
from a2tgpo_trl.tracking import COLUMNS, TABLES, Tracking, markdown, rows_of, without_secrets


class Noting:
    """A tracker that keeps what it gets, and can fail."""

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
    """A trainer with this tracker in place of W&B's, and the tracker."""
    trainer = make(tokenizer, A2TGPOConfig(**settings(folder, **changes)))
    return trainer, tracked(trainer, tracker)


def tracked(trainer, tracker):
    tracking = next(one for one in trainer.callback_handler.callbacks if isinstance(one, Tracking))
    tracking._callbacks = lambda: [tracker]
    return tracker


@pytest.fixture(autouse=True)
def known_by_sight(monkeypatch):
    inner = a2tgpo_trl.tracking.tracker_of
    monkeypatch.setattr(a2tgpo_trl.tracking, "tracker_of", lambda one: one if isinstance(one, Noting) else inner(one))


def test_no_records_are_made_without_a_tracker_and_training_is_equal(tmp_path, monkeypatch):
    tokenizer = tiny.make_tokenizer()
    plain = make(tokenizer, A2TGPOConfig(**settings(tmp_path / "plain")))
    monkeypatch.setattr(plain, "_credited_records", None)
    plain.train()
    watched, trackers = tracked_by(Noting(), tokenizer, tmp_path / "watched")
    watched.train()
    assert len(trackers.sent) == 2
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(watched)[name]), name


def test_tables_are_bounded_evenly_spaced_and_stable_after_resuming(tmp_path):
    assert TABLES == 50

    def due(max_steps: int, first: int = 0, batches_every: int = 1) -> list[int]:
        tracking = Tracking(10, True, lambda: [Noting()], stride=batches_every)
        tracking.on_train_begin(None, SimpleNamespace(max_steps=max_steps), None)
        found = []
        for step in range(first, max_steps, batches_every):
            if tracking.wants(step):
                assert tracking.wants(step)  # asking again changes nothing
                found.append(step)
                tracking.put(step, [])
        return found

    assert due(40) == list(range(40)) and due(50) == list(range(50))
    assert due(101) == list(range(0, 101, 3))
    assert len(due(100_000)) == 50
    assert due(100, first=31) == [step for step in due(100) if step >= 31]
    assert due(100, batches_every=4) == list(range(0, 100, 4))  # every second step is due; tables come with batches


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_failing_tracker_is_dropped_and_the_run_continues(fails_at, tmp_path, caplog):
    trainer, tracker = tracked_by(Noting(fails_at), tiny.make_tokenizer(), tmp_path, max_steps=4)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 4 and len(tracker.sent) == fails_at
    (said,) = [one.message for one in caplog.records if "noting did not accept" in one.message]
    assert "ConnectionError: refused" in said and "the run continues" in said


def test_table_has_a_row_per_turn_and_none_with_table_turns_0(tmp_path):
    tokenizer = tiny.make_tokenizer()
    trainer, tracker = tracked_by(Noting(), tokenizer, tmp_path / "3", max_steps=1)
    assert trainer.args.table_turns == 64 and trainer.train()
    ((step, rows, gains),) = tracker.sent
    assert step == 1 and len(rows) == sum(turns + 1 for turns in TOOL_TURNS)
    assert {turn: len(values) for turn, values in gains.items()} == {1: 3, 2: 2, 3: 1}
    trainer, tracker = tracked_by(Noting(), tokenizer, tmp_path / "0", max_steps=1, table_turns=0)
    assert trainer.train() and [rows for _, rows, _ in tracker.sent] == [[]]


@pytest.mark.parametrize("credit", ["grpo", "a2tgpo"])
def test_rollout_without_tools_is_one_row(credit, tmp_path):
    args = A2TGPOConfig(**settings(tmp_path, max_steps=1, credit=credit, max_completion_length=8))
    trainer = make(tiny.make_tokenizer(), args, tools=None, scripted=False)
    tracker = tracked(trainer, Noting())
    trainer.train()
    ((_, rows, gains),) = tracker.sent
    assert [(row["rollout"], row["turn"], row["status"], row["calls"]) for row in rows] == [
        (i, 1, "ok", "") for i in range(4)
    ]
    assert all(row["advantage"] is not None and row["gain"] is None and row["text"] for row in rows) and gains == {}


def test_run_facts_are_plain_json_without_secrets(tmp_path):
    trainer, tracker = tracked_by(Noting(), tiny.make_tokenizer(), tmp_path, max_steps=1)
    trainer.run_facts["recipe"] = {"day": datetime.date(2026, 5, 6), "hub_token": "abc", "folders": ("a", "b")}
    trainer.run_facts["recipe"][1, "x"] = "http://me:abc@host"
    trainer.train()
    (facts,) = tracker.facts
    assert facts["recipe"] == {
        **{"day": "2026-05-06", "hub_token": "<HUB_TOKEN>", "folders": ["a", "b"]},
        "(1, 'x')": "http://me:<PASSWORD>@host",
    }
    assert {*facts} == {"recipe", "git_commit", "git_changed", "versions"}


def test_tracker_failure_before_the_first_step_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    def missing(callback):
        raise ModuleNotFoundError("No module named 'wandb'")

    monkeypatch.setattr(a2tgpo_trl.tracking, "tracker_of", missing)
    trainer, tracker = tracked_by(Noting(), tiny.make_tokenizer(), tmp_path, max_steps=1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 1 and tracker.sent == tracker.facts == []
    (said,) = [one.message for one in caplog.records if "Trackers did not accept" in one.message]
    assert "No module named 'wandb'" in said and "the run continues" in said


@pytest.mark.parametrize("tools", [None, [tiny.search]])
@pytest.mark.parametrize("column", [3, "text", [], [1], [{"a": 1}]])
def test_row_columns_named_like_record_keys_are_ignored(column, tools, tmp_path, caplog):
    rows = questions().to_list()
    taken = Dataset.from_list([{**row, "turns": column, "values": column, "gains": column} for row in rows])
    args = A2TGPOConfig(**settings(tmp_path, max_steps=1, credit="grpo", max_completion_length=8))
    trainer = make(tiny.make_tokenizer(), args, tools=tools, scripted=False, train_dataset=taken)
    tracker = tracked(trainer, Noting())
    with caplog.at_level(logging.WARNING):
        trainer.train()
    ((_, rows, _),) = tracker.sent
    assert len(rows) == 4 and all(row["text"] and row["advantage"] is not None for row in rows)
    assert all(row["value_before"] is None and row["gain"] is None for row in rows)
    assert not [one for one in caplog.records if "did not accept" in one.message]


def test_rows_that_cannot_be_made_end_the_table_and_not_the_run(tmp_path, monkeypatch, caplog):
    def fails(*_):
        raise IndexError("of a row")

    monkeypatch.setattr(a2tgpo_trl.tracking, "rows_of", fails)
    trainer, tracker = tracked_by(Noting(), tiny.make_tokenizer(), tmp_path)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2 and tracker.sent == []
    assert len([one for one in caplog.records if "noting did not accept" in one.message]) == 1


def test_tracked_gains_cover_all_rounds_of_the_last_batch_only():
    tracking = Tracking(0, True, lambda: [Noting()])
    tracking.on_train_begin(None, SimpleNamespace(max_steps=1), None)
    nan = torch.nan
    tracking.see_gains(torch.tensor([[9.0, 9.0]]), round=1)
    tracking.see_gains(torch.tensor([[1.0, 2.0], [3.0, nan]]), round=1)
    tracking.see_gains(torch.tensor([[4.0, nan, nan]]), round=2)
    assert {turn: values.tolist() for turn, values in tracking._gains.items()} == {1: [1.0, 3.0, 4.0], 2: [2.0]}


def test_other_processes_track_nothing():
    tracking = Tracking(10, False, lambda: [Noting()])
    tracking.on_train_begin(None, SimpleNamespace(max_steps=1), None)
    assert not tracking.wants(0)


def test_table_turns_without_a_tracker_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="table_turns has no effect unless report_to names one of wandb, trackio, ten"
    ):
        A2TGPOConfig(**settings(tmp_path, table_turns=10))
    A2TGPOConfig(**settings(tmp_path, table_turns=0))


def test_tracking_callback_runs_after_trackers_and_before_user_callbacks(tmp_path, monkeypatch):
    # If a user's callback evaluates before the first step, Trackio keeps the config of that moment.
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


def test_texts_of_rows_are_masked_before_they_are_cut():
    (row,) = rows_of([{**RECORD, "prompt": "x" * 995 + "key-12345"}], 3, lambda text: text.replace("key-12345", "<K>"))
    assert row["question"] == "x" * 995 + "<K>" and row["text"] == "one <K>"
    assert (row["step"], row["group"], row["rollout"], row["turn"]) == (3, 4, 0, 1)
    assert (row["value_before"], row["gain"], row["calls"], row["result"]) == (None, None, "", "| <b>\n")
    (row,) = rows_of([RECORD], 3, str)
    assert row["question"].endswith(" ... (600 characters more)")
    assert [row["question"] for row in rows_of([{**RECORD, "prompt": []}], 3, str)] == [""]


def test_a_turn_that_was_cut_before_it_wrote_anything_has_its_row():
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    messages = [called, {"role": "tool", "content": "r"}, {"role": "assistant", "content": ""}]
    turns = [{"status": "ok", "calls": []}, {"status": "over_budget", "calls": []}]
    numbers = {"scores": [0.5, None], "advantages": [1.0, 2.0], "clip_scale": [1.1, 1.0], "outcome": 0.0}
    rows = list(rows_of([{**RECORD, "completion": messages, "turns": turns, **numbers}], 1, str))
    assert [(row["turn"], row["calls"], row["result"], row["status"], row["advantage"]) for row in rows] == [
        (1, "f(1)", "r", "ok", 1.0),
        (2, "", "", "over_budget", 2.0),
    ]


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


@pytest.mark.parametrize("name", ["apiKey", "openai_apikey", "bearer", "db_pass", "api_keys", "GITHUB_PAT", "auth"])
def test_all_texts_below_the_name_of_a_secret_are_left_out(name):
    masked = f"<{name.upper()}>"
    assert without_secrets({name: "abc"}) == {name: masked}
    assert without_secrets({name: ["abc", {"kind": b"abc", "number": 5}]}) == {
        name: [masked, {"kind": masked, "number": 5}]
    }


def test_tokenizer_settings_stay_and_url_passwords_are_masked():
    kinds = ("pad", "eos", "bos", "unk", "sep", "cls", "mask")
    plain = {
        **{f"{kind}_token": "<x>" for kind in kinds},
        "path": "a/b",
        "author": "me",
        "keyword": "k",
        "bypass": "b",
    }
    assert without_secrets(plain) == plain
    assert without_secrets(["postgres://u:secret@host/db", "http://host:80/a@b", "http://u@host"]) == [
        *("postgres://u:<PASSWORD>@host/db", "http://host:80/a@b", "http://u@host")
    ]


def test_file_with_a_non_utf8_name_counts_as_a_git_change(tmp_path):
    repository = make_repository(tmp_path / "code")
    git(repository, "config", "core.quotePath", "false")
    (repository / os.fsdecode(b"caf\xe9.py")).touch()
    git(repository, "add", "--all")
    assert commit(repository)["git_changed"] is True


def test_git_commit_is_none_without_git_and_unchanged_if_clean(tmp_path):
    repository = make_repository(tmp_path / "code")
    assert commit(tmp_path) == {"git_commit": None, "git_changed": None}
    assert commit(repository) == {"git_commit": git(repository, "rev-parse", "HEAD"), "git_changed": True}
    git(repository, "checkout", "-q", "mine.py")
    (repository / "results.txt").touch()  # not part of the code
    assert commit(repository)["git_changed"] is False


def test_completions_table_has_texts_numbers_and_optionally_unique_prompts():
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
    assert as_texts({**logs, "extra": {"n": [np.int64(3), {"a": 1}]}}, 3, False)["n"].tolist() == [3, '{"a": 1}']
