"""a name in a recipe -> the function or class that it means.

exact_match                a name of this package
my_package.rewards:short   an attribute of a module
my_tools.py:lookup         an attribute of a file, beside the recipe or in the working directory
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..lookup import load, nearest


# short name -> import path. Imported when it is used: what `math_equal` stands on is not installed everywhere.
REWARDS = {
    "exact_match": "a2tgpo_trl.rewards:exact_match",
    "exact_number": "a2tgpo_trl.rewards:exact_number",
    "f1": "a2tgpo_trl.rewards:f1",
    "answer_format": "a2tgpo_trl.rewards:answer_format",
    "math_equal": "a2tgpo_trl.rewards.math_answers:math_equal",
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
