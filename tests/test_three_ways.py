"""What the README shows beside the recipe (test_train.py), run as it stands there: script, notebook, wheel."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat
import pytest


ROOT = Path(__file__).parents[1]


def test_the_readmes_script_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (script,) = [block for block in blocks if "A2TGPOTrainer(" in block]
    assert len(script.splitlines()) <= 30
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_its_adapter_learns(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart_lora.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), (
        "clear its outputs: they would be of another machine"
    )
    start = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": tmp_path}}).execute()
    seconds = time.monotonic() - start
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    assert sum(text.startswith("step ") for text in texts) == 25
    row = next(line for text in texts for line in text.splitlines() if "exact match" in line and "(" in line)
    before, after = map(float, re.findall(r"(\d\.\d+) \(", row))
    assert after > before + 0.2, row
    assert any(output.get("data", {}).get("image/png") for output in outputs)
    assert seconds < 1200  # 3 minutes on a quiet machine


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
