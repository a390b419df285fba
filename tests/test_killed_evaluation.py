"""A real `a2tgpo eval` that is killed twice midway gives the same table as an uninterrupted one.

On embedded questions, and on real facts with SmolLM2, a real model.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.rollout.records import read_jsonl


SMOLLM2 = "smollm2"  # stands for the folder that a test writes


@dataclass(frozen=True)
class Evaluation:
    """The arguments of an evaluation, 4 questions at a time, and how many questions are on record at each kill."""

    words: list[str]
    questions: int
    killed_at: tuple[int, int]


EVALUATIONS = {
    "atlas": Evaluation(["quickstart", "--task_kwargs", '{"train_questions": 8, "test_questions": 42}'], 40, (8, 20)),
    # One-hop questions alternate with two-hop ones, which it does not solve; few tokens, because it is slow.
    "facts": Evaluation(
        ["smollm2_facts", "--model_name_or_path", SMOLLM2, "--max_completion_length", "90"], 16, (4, 8)
    ),
}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2") / "policy"
    assert cli(["smollm2", str(folder)]) == 0
    return folder


def start(task: str, folder: Path, smollm2: Path | None) -> subprocess.Popen:
    evaluation = EVALUATIONS[task]
    words = [str(smollm2) if word == SMOLLM2 else word for word in evaluation.words]
    batches = ["--eval_rows", str(evaluation.questions), "--per_device_eval_batch_size", "4", "--report_to", "none"]
    command = [sys.executable, "-m", "a2tgpo_trl", "eval", *words, *batches, "--output_dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(folder: Path) -> Path:
    """The folder of the policy's results, whatever its name."""
    (found,) = (folder / "evaluation").iterdir()
    return found


def on_record(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("evaluation/*/rollouts.jsonl"))


def kill_at(process: subprocess.Popen, folder: Path, questions: int) -> None:
    """Kill the process as soon as this many questions are on record, whatever it is doing."""
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
def test_an_evaluation_that_is_killed_twice_gives_the_table_of_an_unbroken_one(task, request, tmp_path):
    policy = request.getfixturevalue(SMOLLM2) if task == "facts" else None
    whole, killed, number = tmp_path / "whole", tmp_path / "killed", EVALUATIONS[task].questions
    for questions in EVALUATIONS[task].killed_at:
        kill_at(start(task, killed, policy), killed, questions)
        assert questions <= on_record(killed) < number
        assert not list(killed.glob("evaluation/*/scores.*"))
    told = finish(start(task, killed, policy))
    assert "rollouts already exist" in told
    finish(start(task, whole, policy))
    for name in ("scores.json", "scores.md"):
        assert (results(killed) / name).read_bytes() == (results(whole) / name).read_bytes()
    # Not only the table: each rollout is the same, word for word.
    said = [
        [(record["row"], record["completion"], record["rewards"]) for record in read_jsonl(folder / "rollouts.jsonl")]
        for folder in (results(killed), results(whole))
    ]
    assert said[0] == said[1] and len(said[0]) == number
    # And the answers are not all wrong or all right.
    means = json.loads((results(whole) / "scores.json").read_text())["everything"]
    assert 0.0 < means["exact_match"]["mean"] < 1.0
