"""`a2tgpo train --help` lists what may be set; the help of other commands imports no large library."""

import subprocess
import sys
from dataclasses import fields

import pytest
from trl import GRPOConfig

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.cli import main
from a2tgpo_trl.recipe.recipe import RecipeArguments


def test_the_help_of_train_lists_every_setting_of_ours(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    theirs = {entry.name for entry in fields(GRPOConfig)}
    ours = {entry.name for entry in (*fields(A2TGPOConfig), *fields(RecipeArguments))} - theirs
    assert not [name for name in (*ours, "epsilon", "beta") if f"\n    {name} (`" not in shown]
    assert "beside those of GRPOConfig, TrainingArguments and ModelConfig" in shown


@pytest.mark.parametrize("command", ["check", "eval"])
def test_the_help_of_other_commands_needs_no_torch(command):
    code = f"from a2tgpo_trl.cli import main; code = main(['{command}', '--help'])"
    code = f"import sys; {code}; sys.exit(code or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0
