"""The README takes three minutes to read, and every command and line of Python in it runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT


README = ROOT.joinpath("README.md").read_text()
SHORT = "--max_steps 1 --per_device_train_batch_size 8 --gradient_accumulation_steps 1 --eval_rows 3"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(words, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)


def test_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_readme_script_runs_and_marks_three_lines(tmp_path):
    (script,) = blocks("python")
    assert re.findall(r"  # (\d)\.", script) == ["1", "2", "3"]
    (tmp_path / "script.py").write_text(script)
    done = run([sys.executable, "script.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs").exists()
    # Its output begins as shown. Which rollout is the best one may differ between processors.
    (shown,) = blocks("text")
    assert done.stdout.startswith(shown.splitlines(keepends=True)[0])
    gain = r"^    gain [+-]\d+\.\d\d$"
    assert re.search(gain, shown, re.MULTILINE) and re.search(gain, done.stdout, re.MULTILINE)
    assert done.stdout.count("right: Lututh Pogom") == 2  # one rollout per step


def test_readme_has_two_install_commands_and_ci_runs_the_second():
    # test_quickstart.py checks what the first command trains; .ci/run runs the second one in a fresh environment.
    first, second = (command.partition(" && ") for command in COMMANDS if command.startswith("pip"))
    assert (first[0], first[2]) == ("pip install -e .", "a2tgpo train quickstart")
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert second[0] in script and second[2] in script


@pytest.mark.slow
def test_readme_commands_run_in_order(tmp_path):
    commands = ["a2tgpo train quickstart", *[command for command in COMMANDS if not command.startswith("pip")]]
    assert len(commands) >= 6
    for command in commands:
        words = shlex.split(command)
        if {"train", "eval", "launch"} & set(words):
            words += shlex.split(SHORT)
        done = run(words, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "outputs" / "quickstart").is_dir() and (tmp_path / "outputs" / "launched").is_dir()
