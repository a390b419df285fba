"""The recipes that are shipped, and small ones that a test writes."""

from pathlib import Path

import pytest
import yaml
from places import ROOT


SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))  # recipes in subfolders have separate tests


def marks(recipe: str) -> list[pytest.MarkDecorator]:
    """Marks for tests of a recipe that needs something not always installed."""
    return [pytest.mark.textworld] if recipe == "textworld" else []


def write(folder: Path, text: str, **others: str) -> Path:
    """Write a recipe with these lines, and with keys that every recipe needs unless the lines set them."""
    given = yaml.safe_load(text) or {}
    base = {"model_name_or_path": "atlas-tiny", "task": "atlas", "bf16": "false", "output_dir": f"'{folder}'"}
    lines = [f"{key}: {value}" for key, value in {**base, **others}.items() if key not in given]
    file = folder / "recipe.yaml"
    file.write_text("\n".join([*lines, text]) + "\n")
    return file
