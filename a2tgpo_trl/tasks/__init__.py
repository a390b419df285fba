"""A task: prompts with answers, the tools to find them with, and the rewards.

To add one, write a function that returns a `Task`, in any file: a recipe names it by import path (`my_task.py:make`).
Tasks of this package also stand in `TASKS`, under a short name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset


# short name -> import path of a function that makes the task
TASKS = {
    "atlas": "a2tgpo_trl.tasks.atlas.task:atlas",
    "arithmetic": "a2tgpo_trl.tasks.arithmetic.task:arithmetic",
    "gsm8k": "a2tgpo_trl.tasks.math.task:gsm8k",
    "math": "a2tgpo_trl.tasks.math.task:math",
}


@dataclass
class Task:
    """What a trainer needs beside a policy and settings."""

    train_dataset: Dataset | IterableDataset
    test_dataset: Dataset | None = None
    tools: Sequence[Callable] = ()
    reward_funcs: Sequence[Any] = ()
    reward_weights: Sequence[float] | None = None
    environment_factory: Any = None
    # A column of the test set: the tables of an evaluation have a line for each of its values.
    group_by: str | None = field(default=None, kw_only=True)
