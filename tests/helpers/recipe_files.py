"""The recipes that are shipped, and small ones that a test writes."""

from pathlib import Path

import pytest
import yaml
from places import ROOT


SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))  # those of a folder have tests of their own


def marks(recipe: str) -> list[pytest.MarkDecorator]:
    """Of tests of a recipe: what it needs that is not always there."""
    return [pytest.mark.textworld] if recipe == "textworld" else []


def write(folder: Path, text: str, **others: str) -> Path:
    """A recipe with what each needs, and these lines instead of or beside it."""
    given = yaml.safe_load(text) or {}
    base = {"model_name_or_path": "atlas-tiny", "task": "atlas", "bf16": "false", "output_dir": f"'{folder}'"}
    lines = [f"{key}: {value}" for key, value in {**base, **others}.items() if key not in given]
    file = folder / "recipe.yaml"
    file.write_text("\n".join([*lines, text]) + "\n")
    return file
