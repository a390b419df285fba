"""the names in a recipe -> its task: data sets, tools, rewards and environment.

exact_match                a name of this package
my_package.rewards:short   an attribute of a module
my_tools.py:lookup         an attribute of a file, beside the recipe or in the working directory
"""

import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..lookup import find_file, load, nearest
from ..rewards import REWARDS
from ..tasks import TASKS, Task
from ..tools.mcp import mcp_tools
from .arguments import RecipeArguments


FILE_KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def make_task(run: RecipeArguments, folders: Sequence[Path]) -> Task:
    """Return the named task, with the parts that the recipe replaces."""
    if (run.task is None) == (run.dataset_name is None):
        raise ValueError("name either a task or a dataset_name.")
    if run.task is not None:
        maker = load(TASKS.get(run.task, run.task), folders, "task", TASKS)
        kwargs = run.task_kwargs or {}
        assert not isinstance(kwargs, str)  # `RecipeArguments` has read it
        check_fits("task_kwargs", kwargs, maker, f"the task {run.task!r}")
        task = maker(**kwargs)
        if not isinstance(task, Task):
            raise ValueError(f"The task {run.task!r} must return an a2tgpo_trl.tasks.Task; got {type(task).__name__}.")
    else:
        task = _task_of_dataset(run, folders)
    if run.tools is not None:
        task.tools = [tool for name in run.tools for tool in _tools(name, folders)]
    if run.reward_funcs is not None:
        task.reward_funcs = [load_reward(name, folders) for name in run.reward_funcs]
        task.reward_weights = None
    if run.environment_factory is not None:
        task.environment_factory = _environment(run, run.environment_factory, folders)
    task.group_by = run.group_by or task.group_by
    return task


def check_fits(key: str, kwargs: dict[str, Any], function: Callable, named: str) -> None:
    """Raise an error if the function does not take these arguments."""
    known: list[str] = []
    try:
        signature = inspect.signature(function)
        known = [name for name, one in signature.parameters.items() if one.kind is not one.VAR_KEYWORD]
        signature.bind(**kwargs)
    except TypeError as error:
        hints = (nearest(name, known) for name in kwargs if name not in known)
        raise ValueError(f"{key} do not fit {named}: {error}.{''.join(hints)}") from error


def _environment(run: RecipeArguments, name: str, folders: Sequence[Path]) -> Any:
    factory, kwargs = load(name, folders, "environment", ()), run.environment_kwargs
    if not kwargs:
        return factory
    assert not isinstance(kwargs, str)  # `RecipeArguments` has read it
    check_fits("environment_kwargs", kwargs, factory, f"the environment {name!r}")
    return partial(factory, **kwargs)


def _task_of_dataset(run: RecipeArguments, folders: Sequence[Path]) -> Task:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    assert run.dataset_name is not None
    file = find_file(run.dataset_name, folders)
    if file is None:
        if Path(run.dataset_name).suffix in FILE_KINDS:
            raise ValueError(f"There is no file {run.dataset_name!r} in {' or '.join(map(str, folders))}.")
        splits = load_dataset(run.dataset_name, name=run.dataset_config)
    else:
        kind = FILE_KINDS.get(file.suffix)
        if kind is None:
            raise ValueError(f"dataset_name {file} ends in {file.suffix!r}; known endings: {', '.join(FILE_KINDS)}.")
        try:
            splits = load_dataset(kind, data_files=str(file))
        except (DatasetsError, StopIteration) as error:  # a line that is no JSON, no line at all
            why = error.__cause__ or error
            raise ValueError(
                f"dataset_name {file} could not be read: {str(why) or 'it has no rows'}. Each row must be one JSON "
                "object or line, with the same columns."
            ) from error
    train = _split(splits, run.dataset_train_split, run.dataset_name)
    test = _split(splits, run.dataset_test_split, run.dataset_name) if run.dataset_test_split else None
    return Task(train, test)


def _split(splits: Any, name: str, dataset: str) -> Any:
    """Return a split, or some of its rows.

    Example: "train[:50]" -> the first 50 rows, "train[50:]" -> the others
    """
    found = re.fullmatch(r"([^\[]+)(?:\[(-?\d*):(-?\d*)\])?", name)
    if found is None or found[1] not in splits:
        raise ValueError(
            f"{dataset} has no split {name!r}; it has {', '.join(splits)}. For some of the rows of a split, write "
            f"{next(iter(splits))}[:50] or {next(iter(splits))}[50:]."
        )
    rows = splits[found[1]]
    chosen = range(len(rows))[slice(*(int(bound) if bound else None for bound in found.group(2, 3)))]
    return rows.select(chosen) if ":" in name else rows


def _tools(name: str, folders: Sequence[Path]) -> list[Callable]:
    """Return the function that is named, or the tools that a server offers."""
    prefix = next((prefix for prefix in ("mcp:", "mcp+") if name.startswith(prefix)), None)
    if prefix is None:
        return [load(name, folders, "tool", ())]
    return mcp_tools(name.removeprefix(prefix).strip())


def load_reward(name: str, folders: Sequence[Path]) -> Any:
    """Return the reward function of this name, or the path of a reward model as it is."""
    name = REWARDS.get(name, name)
    return load(name, folders, "reward", REWARDS) if ":" in name else _reward_model(name)


def _reward_model(name: str) -> str:
    if "/" not in name:
        raise ValueError(
            f"There is no reward {name!r}.{nearest(name, REWARDS)} Known: {', '.join(REWARDS)}. Name a function as "
            "file.py:function or package.module:function, and a reward model by its path."
        )
    return name
