"""One seed of the README's first command keeps its promise on this machine."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_quickstart_raises_exact_match_without_alarms(tmp_path):
    words = [sys.executable, "-m", "a2tgpo_trl", "train", "quickstart"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "quickstart"
    before, after = (json.loads((folder / "evaluation" / f"{when}.json").read_text()) for when in ("before", "after"))
    assert [group["exact_match"]["number"] for group in before["groups"].values()] == [100, 100, 100]
    assert before["everything"]["exact_match"]["mean"] <= 0.45
    assert after["everything"]["exact_match"]["mean"] >= 0.80
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    alarms = [line[name] for line in log for name in line if name.startswith("alarms/")]
    assert len(alarms) == 5 * 40 and not any(alarms)
