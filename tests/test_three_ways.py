"""The examples of the help pages, run as they are; and the package as a wheel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from datasets import Dataset
from pages import example
from places import ROOT

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer


def defined(file: str, word: str) -> dict:
    """The names that the example with this word in a module's docstring defines."""
    names: dict = {}
    exec(example(file, word), names)
    return names


def settings_of_a_step(folder: Path, **changes) -> A2TGPOConfig:
    small = {"use_cpu": True, "bf16": False, "report_to": "none", "num_generations": 4, "max_steps": 1}
    small |= {
        "per_device_train_batch_size": 4,
        "max_completion_length": 128,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return A2TGPOConfig(str(folder), **small, **changes)


def test_environment_example_of_the_help_page_trains(tmp_path):
    tokenizer, seen = tiny.make_tokenizer(), []
    add = '<tool_call>\n{{"name": "add", "arguments": {{"number": {}}}}}\n</tool_call><|im_end|>'
    model = tiny.make_model(tokenizer)
    tiny.script(model, tokenizer, lambda turn, row: tiny.final("4") if turn else add.format(2 + row % 2 * 2))
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "Count."}]] * 4, "goal": [4] * 4})
    counter = defined("rollout/environments.py", "class Counter")["Counter"]
    args = settings_of_a_step(tmp_path, credit="gtpo", turn_rewards={"environment": 1.0})
    trainer = A2TGPOTrainer(model, None, args, data, processing_class=tokenizer, environment_factory=counter)
    trainer.on_rollouts = seen.extend
    trainer.train()
    # Every second rollout adds 4, which is the goal; the others add 2.
    assert [record["rewards"]["Counter"] for record in seen] == [0.0, 1.0, 0.0, 1.0]
    assert [turn["reward"] for turn in seen[1]["turns"]] == [0.1, None]
    assert "Count to 4." in str(seen[0]["prompt"])


def test_rollout_function_example_of_the_help_page_trains(tmp_path):
    tokenizer, seen, notes = tiny.make_tokenizer(), [], []

    def length(completions, note, **_) -> list[float]:
        notes.extend(note)
        return [float(len(completion)) for completion in completions]

    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "Go."}]] * 4, "answer": ["Paris"] * 4})
    rollout = defined("rollout/__init__.py", "def rollout(")["rollout"]
    trainer = A2TGPOTrainer(
        tiny.make_model(tokenizer),
        length,
        settings_of_a_step(tmp_path),
        data,
        processing_class=tokenizer,
        rollout_func=rollout,
    )
    trainer.on_rollouts = seen.extend
    trainer.train()
    assert notes == ["seen by rewards"] * 4
    assert all(len(record["turns"]) == 2 and len(record["gains"]) == 1 for record in seen)


@pytest.mark.slow
def test_installed_wheel_trains_the_quickstart(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 15_000_000
    installed = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", installed, wheel], check=True
    )
    # Run the installed package with this environment's libraries, outside the checkout.
    words = ["train", "quickstart", "--max_steps", "1", "--eval_rows", "4", "--per_device_train_batch_size", "8"]
    words += ["--gradient_accumulation_steps", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "a2tgpo_trl", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "quickstart" / "learning_curve.png").exists()
