"""A real `a2tgpo eval` that is killed twice in the middle: its table is that of one which nothing disturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from a2tgpo_trl.rollout.records import read_jsonl


# task -> recipe and words of an evaluation of 40 questions, 4 at a time
EVALUATIONS = {
    "atlas": ["quickstart", "--task_kwargs", '{"train_questions": 8, "test_questions": 42}'],
}
QUESTIONS = 40
BATCHES = ["--eval_rows", str(QUESTIONS), "--per_device_eval_batch_size", "4", "--report_to", "none"]
KILLED_AT = (8, 20)  # questions on record


def start(task: str, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "a2tgpo_trl", "eval", *EVALUATIONS[task], *BATCHES, "--output_dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(folder: Path) -> Path:
    """The folder of the policy's results, by whatever name."""
    (found,) = (folder / "evaluation").iterdir()
    return found


def on_record(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("evaluation/*/rollouts.jsonl"))


def kill_at(process: subprocess.Popen, folder: Path, questions: int) -> None:
    """As soon as so many are on record, whatever the process does then."""
    with process:
        while on_record(folder) < questions and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        told = process.stdout.read()
    assert process.returncode == -signal.SIGKILL, told


def finish(process: subprocess.Popen) -> str:
    with process:
        told = process.stdout.read()
    assert process.returncode == 0, told
    return told


@pytest.mark.slow
@pytest.mark.parametrize("task", EVALUATIONS)
def test_an_evaluation_that_is_killed_twice_gives_the_table_of_an_unbroken_one(task, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for questions in KILLED_AT:
        kill_at(start(task, killed), killed, questions)
        assert questions <= on_record(killed) < QUESTIONS
        assert not list(killed.glob("evaluation/*/scores.*"))
    told = finish(start(task, killed))
    assert "rollouts are there already" in told
    finish(start(task, whole))
    for name in ("scores.json", "scores.md"):
        assert (results(killed) / name).read_bytes() == (results(whole) / name).read_bytes()
    # Not the table alone: each rollout is the same, word by word.
    said = [
        [(record["row"], record["completion"], record["rewards"]) for record in read_jsonl(folder / "rollouts.jsonl")]
        for folder in (results(killed), results(whole))
    ]
    assert said[0] == said[1] and len(said[0]) == QUESTIONS
    # And they are not all the same wrong answer.
    means = json.loads((results(whole) / "scores.json").read_text())["everything"]
    assert 0.0 < means["exact_match"]["mean"] < 1.0
