"""the keys of a recipe, and the parser that reads them from a file and a command line.

Every field of `A2TGPOConfig`, of TRL's `ModelConfig` (LoRA and quantisation among them) and of `RecipeArguments` is a
key of the file and an option of the command line.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl import ModelConfig, TrlParser

from ..config import A2TGPOConfig
from ..errors import RecipeError
from ..fields import setting
from ..launch.launched import deepspeed_on_cpu
from ..lookup import nearest
from ..rewards import REWARDS
from ..tasks import TASKS


@dataclass
class RecipeArguments:
    """What a run trains on, by name. Keys that TRL's own scripts have keep their names."""

    task: str | None = setting(
        None, f"Task to train on: {', '.join(TASKS)}, or the import path of a function that returns a Task."
    )
    task_kwargs: dict[str, Any] | str | None = setting(None, "Arguments of the task's function.")
    dataset_name: str | None = setting(
        None, "Instead of a task: a dataset on the hub, or a file (.json, .jsonl, .csv, .parquet)."
    )
    dataset_config: str | None = setting(None, "Configuration of a dataset on the hub.")
    dataset_train_split: str = setting("train", "Split to train on, or some of its rows: train[50:].")
    dataset_test_split: str | None = setting(
        None, "Split to evaluate on, or some of its rows: train[:50]. None: no evaluation."
    )
    tools: list[str] | None = setting(
        None,
        "Import paths of tool functions, or Model Context Protocol servers: mcp:COMMAND starts one, mcp+http://... "
        "connects to one. Replaces the task's.",
    )
    reward_funcs: list[str] | None = setting(
        None,
        f"Rewards: {', '.join(REWARDS)}, import paths of functions, or names of reward models. Replaces the task's.",
    )
    environment_factory: str | None = setting(
        None, "Import path of a class with a `reset` method. Replaces the task's."
    )
    environment_kwargs: dict[str, Any] | str | None = setting(None, "Arguments of the environment_factory.")
    group_by: str | None = setting(None, "Column of the test set whose values get their own lines in the tables.")
    eval_rows: int | None = setting(None, "Number of rows of the test set to evaluate. None: all; 0: no evaluation.")
    overwrite: bool = setting(False, "Whether to overwrite a finished run in the output folder.")

    def __post_init__(self):
        self.task_kwargs = _mapping("task_kwargs", self.task_kwargs, '{"seed": 1}')
        self.environment_kwargs = _mapping("environment_kwargs", self.environment_kwargs, '{"timeout": 2}')


def _mapping(key: str, value: dict[str, Any] | str | None, example: str) -> dict[str, Any] | None:
    """Return the mapping: from a file as it is, from the command line read as JSON."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{key} must be a mapping written as JSON ('{example}'); got {value!r}.")
    return found


def split_words(words: Sequence[str]) -> tuple[str | None, list[str] | None, list[str]]:
    """Return the recipe of a command line, what to build it on instead of its own `base`, and the other words.

    Example: ["--config", "qa/dapo", "--base", "qa/qwen3_8b", "--seed", "1"]
        -> "qa/dapo", ["qa/qwen3_8b"], ["--seed", "1"]
    """
    parser = _ReadsOrRaises(add_help=False, allow_abbrev=False, prog="a2tgpo")
    parser.add_argument("--config")
    parser.add_argument("--base", nargs="+")
    named, others = parser.parse_known_args(words)
    if sum(word == "--config" or word.startswith("--config=") for word in words) > 1:
        raise RecipeError("--config names a second recipe. Name one; to build it on others, use --base.")
    if named.base is not None and named.config is None:
        raise RecipeError("--base would have no effect without a recipe that is built on it (--config).")
    return named.config, named.base, others


class _ReadsOrRaises(argparse.ArgumentParser):
    """Raises errors instead of printing them below the usage."""

    def error(self, message: str):
        raise RecipeError(message)


class RecipeParser(TrlParser):
    """TRL's parser, with errors raised instead of printed below 300 lines of usage."""

    def __init__(self) -> None:
        super().__init__((RecipeArguments, A2TGPOConfig, ModelConfig), allow_abbrev=False, prog="a2tgpo")
        self.set_defaults_with_config(
            disable_tqdm=False,  # otherwise it follows the libraries' verbosity, which is turned down
            use_cpu=deepspeed_on_cpu(),  # which Accelerate does not tell its processes
        )

    def error(self, message: str):
        raise ValueError(message)

    def parse_over(self, content: Mapping[str, Any], words: Sequence[str]) -> list[Any]:
        """Parse the keys of a recipe, overridden by these words."""
        keys = {**content}
        os.environ.update({name: str(value) for name, value in keys.pop("env", {}).items()})
        self.set_defaults_with_config(**keys)
        *parsed, unknown = self.parse_args_into_dataclasses(args=list(words), return_remaining_strings=True)
        self.refuse(unknown)
        return parsed

    def parse_alone(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the keys that these words set, with their values."""
        self.set_defaults_with_config(**{action.dest: argparse.SUPPRESS for action in self._actions})
        given, unknown = self.parse_known_args(list(words))
        self.refuse(unknown)
        return vars(given)

    def refuse(self, unknown: Sequence[str]) -> None:
        """Raise an error for words that are no options, with the nearest option that exists."""
        if unknown:
            key = unknown[0].removeprefix("--").replace("-", "_")
            raise ValueError(f"there is no option {unknown[0]!r}.{nearest(key, self.valid_keys)}")

    @property
    def valid_keys(self) -> list[str]:
        return sorted({action.dest for action in self._actions} - {"help"})
