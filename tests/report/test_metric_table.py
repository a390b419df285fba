"""The table of metrics: what it says about a name, and that it names exactly what runs log."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from tracker_files import environment, from_wandb
from training import make, questions, settings

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.report.alarms import ALARMS
from a2tgpo_trl.report.metrics import GROUPS, STATUSES, documented_as, names, table
from a2tgpo_trl.rollout.failures import STATUSES as OF_TURNS
from a2tgpo_trl.rollout.tally import OF_A_TOOL
from a2tgpo_trl.turns import LOGGED_TURNS


METRICS = [metric for group in GROUPS for metric in group.metrics]


def test_metrics_and_their_eval_names_are_found_by_pattern():
    found = {
        "gain/mean": "gain/mean",
        "gain/turn_2/mean": "gain/{turn}/mean",
        "turns/mean": "turns/mean",  # not a status
        "turns/timeout": "turns/{status}",
        "tools/search/calls": "tools/{tool}/calls",
        "eval_rewards/f1/mean": "eval_rewards/{reward}/mean",
        "profiling/Time taken: A2TGPOTrainer._prepare_inputs": "profiling/Time taken: {method}",
    }
    assert {name: documented_as(name) for name in found} == found
    unknown = [
        "gian/mean",
        "turns/lost",
        "gain/turn_9/mean",
        "eval_loss",
        "eval_gain/mean",
        "tools/a/b/calls",
        "reward2",
    ]
    assert [documented_as(name) for name in unknown] == [None] * len(unknown)


def test_metric_names_are_unique_and_good_or_bad_ones_say_what_to_do():
    known = list(names())
    assert len(known) == len(set(known))
    assert all(metric.what for metric in METRICS)
    assert all(metric.do for metric in METRICS if metric.good or metric.bad)
    assert all(metric.good and metric.bad for metric in METRICS if metric.good or metric.bad)


def test_names_in_the_table_match_the_code():
    assert STATUSES == OF_TURNS and set(OF_A_TOOL) < set(STATUSES)
    assert documented_as(f"value/after_turn_{LOGGED_TURNS}") and not documented_as(
        f"value/after_turn_{LOGGED_TURNS + 1}"
    )
    assert {alarm.name for alarm in ALARMS} == {name for name in names() if name.startswith("alarms/")}


def test_metrics_page_shows_every_text_of_the_table():
    shown = " ".join(table().split())
    for metric in METRICS:
        for text in (*metric.names, metric.what, metric.when, metric.good, metric.bad, metric.do):
            assert " ".join(text.split()) in shown
    assert all(f"{alarm.when}" in shown for alarm in ALARMS)


def test_run_and_evaluation_log_only_documented_metrics(tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 1, "eval_gains": True, "resample_limit": 1}
    args = A2TGPOConfig(**settings(tmp_path, turn_rewards={"failed_call": -0.1}, **changes))
    trainer = make(tiny.make_tokenizer(), args, eval_dataset=questions(2))
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry} - {"step"}
    assert len(logged) > 100 and {name for name in logged if documented_as(name) is None} == set()


@pytest.mark.slow
def test_wandb_run_holds_exactly_the_documented_metrics(tmp_path):
    program = Path(__file__).parents[1] / "helpers" / "every_metric.py"
    variables = {**os.environ, **environment(tmp_path / "tracked")}
    words = [sys.executable, str(program), str(tmp_path / "runs")]
    done = subprocess.run(words, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = from_wandb(tmp_path / "tracked")
    logged = {f"eval_{name[5:]}" if name.startswith("eval/") else name.removeprefix("train/") for name in kept.names}
    assert {name for name in logged if documented_as(name) is None} == set()
    assert {documented_as(name) for name in logged} == set(names())
    # Each status, too.
    assert {f"turns/{status}" for status in OF_TURNS} <= logged
    assert {f"tools/search/{status}" for status in OF_A_TOOL} <= logged
    assert {line["completions"]["_type"] for line in kept.lines if "completions" in line} == {"table-file"}
