"""House rules: lint, format and types are tests, so that `pytest` covers them."""

import re
import subprocess
import sys
from importlib.metadata import entry_points, metadata

import pytest
from places import ROOT

import a2tgpo_trl


@pytest.mark.parametrize(
    "command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=lambda command: " ".join(command)
)
def test_lint_format_and_types_pass(command):
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_installed_metadata_are_those_of_this_version():
    installed = metadata("a2tgpo_trl")
    assert installed["Version"] == a2tgpo_trl.__version__
    trackers = {"wandb", "trackio", "tensorboard"}
    extras = {
        "deepspeed",
        "dense",
        "vllm",
        "math",
        "mcp",
        "notebooks",
        "python",
        "qlora",
        "search",
        "smol",
        "test",
        "test-vllm",
        "textworld",
    } | trackers
    assert set(installed.get_all("Provides-Extra")) == extras
    requirements = installed.get_all("Requires-Dist")
    for extra in extras:
        assert any(f'extra == "{extra}"' in requirement for requirement in requirements)


def test_the_command_line_is_installed():
    (command,) = entry_points(group="console_scripts", name="a2tgpo")
    assert callable(command.load())


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "recipes/README.md", "recipes/qa/README.md"])
def test_files_named_in_documentation_exist(file):
    text = (ROOT / file).read_text()
    linked = [(ROOT / file).parent / target for target in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
    named = re.findall(r"`((?:tests|recipes|notebooks|a2tgpo_trl|\.ci)/[\w./]*|[\w/]+/\w+\.py)`", text)
    assert linked or named
    for path in linked:
        assert path.exists(), path
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "a2tgpo_trl" / name).exists(), name
