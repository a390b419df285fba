"""a name in a recipe -> the function or class that it means.

exact_match                a name of this package
my_package.rewards:short   an attribute of a module
my_tools.py:lookup         an attribute of a file, beside the recipe or in the working directory
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .recipe_file import nearest


# short name -> import path. Imported when it is used: what `math_equal` stands on is not installed everywhere.
REWARDS = {
    "exact_match": "a2tgpo_trl.rewards:exact_match",
    "exact_number": "a2tgpo_trl.rewards:exact_number",
    "f1": "a2tgpo_trl.rewards:f1",
    "answer_format": "a2tgpo_trl.rewards:answer_format",
    "math_equal": "a2tgpo_trl.math_answers:math_equal",
}


def load_reward(name: str, folders: Sequence[Path]) -> Any:
    """A reward function by name, or the path of a reward model as it is."""
    name = REWARDS.get(name, name)
    return load(name, folders, "reward", REWARDS) if ":" in name else _reward_model(name)


def _reward_model(name: str) -> str:
    if "/" not in name:
        raise ValueError(
            f"There is no reward {name!r}.{nearest(name, REWARDS)} Known are {', '.join(REWARDS)}; functions are "
            "named as file.py:function or package.module:function, a reward model by its path."
        )
    return name


def load(name: str, folders: Sequence[Path], kind: str, known: Any) -> Any:
    """What `module:attribute` or `file.py:attribute` names."""
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise ValueError(
            f"There is no {kind} {name!r}.{nearest(name, known)} Name one as file.py:{kind} or package.module:{kind}."
        )
    module = _module_of_file(place, folders) if place.endswith(".py") else importlib.import_module(place)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ValueError(f"{place} has no {attribute!r}.{nearest(attribute, vars(module))}") from None


def _module_of_file(place: str, folders: Sequence[Path]) -> Any:
    file = find_file(place, folders)
    if file is None:
        raise ValueError(f"There is no file {place!r} in {' or '.join(map(str, folders))}.")
    name = f"a2tgpo_recipe_{file.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(file):
        return sys.modules[name]  # two names of one file share its state
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def find_file(place: str, folders: Sequence[Path]) -> Path | None:
    """The first file of this path in these folders."""
    return next(((folder / place).resolve() for folder in folders if (folder / place).is_file()), None)
