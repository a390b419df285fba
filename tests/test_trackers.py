"""What W&B, Trackio and TensorBoard get beside metrics: a table of turns, histograms of gains, the run's config."""

import html
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny
import yaml
from ranks import printed
from repositories import git, make_repository
from tracker_files import environment, from_tensorboard, from_trackio, from_wandb, table_of_wandb
from training import make, questions, settings

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.report.provenance import versions
from a2tgpo_trl.rollout.records import read_jsonl
from a2tgpo_trl.tracking import COLUMNS


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


def records_of(folder) -> dict[int, list[dict]]:
    """The records of each step, as written by `record_every`."""
    return {
        int(file.name.split("-")[1]): read_jsonl(file) for file in sorted((folder / "rollouts").glob("*-rank-0.jsonl"))
    }


def expected_rows(records) -> list[dict]:
    """The expected table rows, computed from the records."""
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
    import wandb  # not installed where only vLLM's tests run

    for name, value in {**environment(tmp_path), "WANDB_CONSOLE": "off", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MY_API_KEY", "capital of France")  # part of the first question
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
    assert [len(rows) for rows in completions] == [4, 4, 4]  # TRL sends the last table again when training ends
    assert json.loads(completions[0][2]["completion"])[0]["content"] == "<answer>Paris</answer>"
    assert completions[0][0]["exact_match"] == 1.0 and len(json.loads(completions[0][0]["turn_advantages"])) == 3


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
log_completions: true
"""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, repository):
    """A run of the quickstart with all trackers: the folder of their files, and the run's own folder."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "mine.yaml").write_text(RECIPE)
    # In a separate process: trackers keep global state, and W&B writes its file when the process ends.
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
    assert config["recipe"]["num_generations"] == 8  # from the base recipe
    return True


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_tracker_gets_all_curves_tables_histograms_and_config(tracker, tracked, repository):
    folder, run = tracked
    kept = from_wandb(folder) if tracker == "wandb" else from_trackio(folder)
    records = records_of(run)
    assert same_curves(kept, run) and same_config(kept.config, repository)
    assert kept.config["table_turns"] == 30 and kept.config["credit"] == "a2tgpo"
    tables = kept.series("train/rollouts/turns")
    for table, of_step in zip(tables, records.values(), strict=True):
        rows = table_of_wandb(folder, table) if tracker == "wandb" else table["_value"]
        assert same_rows(rows, of_step, most=30)
    *completions, last = kept.series("completions")  # TRL sends the last table again when training ends
    assert len(completions) == len(tables) == 2
    for table, of_step in zip([*completions, last], [*records.values(), records[2]], strict=True):
        rows = table_of_wandb(folder, table) if tracker == "wandb" else table["_value"]
        assert [row["exact_match"] for row in rows] == [record["rewards"]["exact_match"] for record in of_step]
    for turn in (1, 2):
        for histogram, of_step in zip(kept.series(f"train/gain/turn_{turn}/histogram"), records.values(), strict=True):
            gains = gains_of(of_step, turn)
            assert sum(histogram["values"]) == len(gains)
            assert (histogram["bins"][0], histogram["bins"][-1]) == pytest.approx((min(gains), max(gains)))


@pytest.mark.slow
def test_tensorboard_gets_scalars_histograms_and_texts(tracked, repository):
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


@pytest.mark.slow
def test_only_the_main_process_tracks_gains_of_all_ranks(tmp_path, repository):
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("eval_rows: 4", "eval_rows: 0").replace(", trackio", ""))
    words = ["-m", "a2tgpo_trl.train", "--config", str(tmp_path / "mine.yaml"), "--output_dir", str(tmp_path / "run")]
    words += ["--per_device_train_batch_size", "8", "--use_cpu", "true"]
    printed(tmp_path / "logs", words, processes=2, **environment(tmp_path))
    kept, records = from_wandb(tmp_path), records_of(tmp_path / "run")  # one run, from one process
    assert same_curves(kept, tmp_path / "run") and len(list((tmp_path / "run" / "rollouts").glob("*-rank-1*"))) == 2
    for table, of_main in zip(kept.series("train/rollouts/turns"), records.values(), strict=True):
        assert same_rows(table_of_wandb(tmp_path, table), of_main, most=30)
    for number, histogram in enumerate(kept.series("train/gain/turn_1/histogram"), start=1):
        of_all = [
            one for file in (tmp_path / "run" / "rollouts").glob(f"*{number}-rank-*") for one in read_jsonl(file)
        ]
        assert sum(histogram["values"]) == len(gains_of(of_all, 1)) > len(gains_of(records[number], 1))


def test_rollouts_outside_of_a_training_need_no_run_of_trackio(tmp_path):
    # TRL would send it the seconds of a method, and Trackio would complain that there is no run.
    trainer = make(tiny.make_tokenizer(), A2TGPOConfig(**settings(tmp_path, report_to="trackio")))
    assert len(trainer.roll_out(list(questions(1)))) == 4
    assert trainer.args.report_to == ["trackio"]


def test_missing_tracker_package_is_an_error_with_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(RuntimeError, match="WandbCallback requires wandb to be installed. Run `pip install wandb`"):
        make(tiny.make_tokenizer(), A2TGPOConfig(**settings(tmp_path, report_to="wandb")))
