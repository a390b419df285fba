"""What the pages and the notebook show, run as it stands there; and the package as a wheel."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat
import pytest
import tiny
from datasets import Dataset
from pages import example
from places import ROOT

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer


def defined(file: str, word: str) -> dict:
    """What the example with this word defines, in the page of a topic."""
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


def test_the_environment_of_its_page_is_one(tmp_path):
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
    # Every other rollout adds 4, which is the goal, and the others 2.
    assert [record["rewards"]["Counter"] for record in seen] == [0.0, 1.0, 0.0, 1.0]
    assert [turn["reward"] for turn in seen[1]["turns"]] == [0.1, None]
    assert "Count to 4." in str(seen[0]["prompt"])


def test_the_rollout_function_of_its_page_is_one(tmp_path):
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


def run_notebook(name: str, folder: Path) -> list:
    """The outputs of a notebook that is run from top to bottom in this folder."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), (
        "clear its outputs: they would be of another machine"
    )
    start = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": folder}}).execute()
    assert time.monotonic() - start < 1200  # 3 minutes on a quiet machine
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def texts_of(outputs: list) -> list[str]:
    return [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]


def before_and_after(texts: list[str], row: str) -> list[float]:
    """Two scores, of the row of this name in a table of them."""
    line = next(line for text in texts for line in text.splitlines() if row in line and "(" in line)
    return [float(score) for score in re.findall(r"(\d\.\d+) \(", line)]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_its_adapter_learns(tmp_path):
    outputs = run_notebook("quickstart_lora.ipynb", tmp_path)
    texts = texts_of(outputs)
    assert sum(text.startswith("step ") for text in texts) == 25
    before, after = before_and_after(texts, "exact match")
    assert after > before + 0.2
    assert any(output.get("data", {}).get("image/png") for output in outputs)


@pytest.mark.slow
def test_the_notebook_of_a_tool_and_rewards_of_ones_own_trains_an_adapter_that_learns(tmp_path):
    texts = texts_of(run_notebook("own_task_lora.ipynb", tmp_path))
    assert sum(text.startswith("step ") for text in texts) == 20
    before, after = before_and_after(texts, "right")
    assert after > before + 0.2
    assert "adapter_model.safetensors" in texts[-1]


@pytest.mark.slow
def test_the_wheel_brings_recipes_world_and_policy(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 15_000_000
    installed = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", installed, wheel], check=True
    )
    # An installed package beside this environment's libraries, and away from the checkout.
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
