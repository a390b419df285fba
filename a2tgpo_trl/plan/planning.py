"""a recipe, devices -> `Plan`: whether it fits in their memory."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from ..config import A2TGPOConfig
from ..information_gain.answers import is_empty
from ..preflight.loading import all_tools, load_config, load_tokenizer, make_chat
from ..recipe.recipe import Recipe, read_recipe
from .hardware import Device
from .memory import Memory, plan_memory
from .policy import Parameters, Policy
from .setting import Setting, setting_of, training_of
from .sharding import Sharding


FITS = 0.9  # of a device's memory: what allocators leave unused between blocks is not counted
PROMPT_TOKENS = 300  # if the recipe's own cannot be counted
ROWS_READ = 200


@dataclass(frozen=True)
class Plan:
    """What a run would take on each device, with the longest rollouts possible."""

    model: str
    parameters: Parameters
    device: Device
    sharding: Sharding
    setting: Setting
    memory: Memory
    assumptions: list[str]

    @property
    def fits(self) -> bool:
        return self.memory.peak <= FITS * self.device.memory_bytes


class Planner:
    """Plans one recipe for a kind of device and a sharding."""

    def __init__(self, recipe: Recipe, device: Device, sharding: Sharding, prompt_tokens: int | None = None):
        self._recipe, self._device, self._sharding = recipe, device, sharding
        try:
            config = load_config(recipe)
        except (OSError, ValueError) as error:
            raise ValueError(f"{recipe.where}model_name_or_path {recipe.base_name!r}: {error}") from error
        training = training_of(recipe, config, sharding, device.is_gpu)
        self._policy = Policy(config, training, _optimizer_of(recipe.args))
        self._setting = setting_of(recipe, config, sharding)
        self._model = f"{recipe.base_name} ({(config.architectures or [config.model_type])[0]})"
        self._prompt, self._note = (prompt_tokens, "as given") if prompt_tokens else _longest_prompt(recipe)

    def plan(self) -> Plan:
        """Return the plan, with all completions as long as `max_completion_length`."""
        completion = self._setting.max_completion_length
        return Plan(
            model=self._model,
            parameters=self._policy.parameters,
            device=self._device,
            sharding=self._sharding,
            setting=self._setting,
            memory=self._memory(self._setting, completion),
            assumptions=[
                *self._training_alone(),
                f"rollouts: prompts of {self._prompt:g} tokens ({self._note}), and completions of {completion}",
                "not counted: memory that allocators leave unused; a tenth of the memory is kept free for it",
            ],
        )

    def _training_alone(self) -> list[str]:
        rows = self._recipe.task.train_dataset
        if rows is None or not is_empty(rows):
            return []
        return ["training: the recipe has nothing to train on, and its evaluations take less"]

    def training_peak(self, completion: int) -> float:
        """Return the bytes at the peak of training alone, with completions of this many tokens."""
        return self._memory(replace(self._setting, evaluated=0), completion).peak

    def _memory(self, setting: Setting, completion: int) -> Memory:
        row = math.ceil(self._prompt + completion)
        return plan_memory(self._policy, setting, self._sharding, self._device, row)


@contextmanager
def processes(number: int) -> Iterator[None]:
    """Inside, recipes are read as in a run of this many processes: batch sizes are checked against it."""
    setattr(A2TGPOConfig, "world_size", number)  # noqa: B010  # over a property of the parent
    try:
        yield
    finally:
        delattr(A2TGPOConfig, "world_size")


def read_for(words: Sequence[str], sharding: Sharding, device: Device) -> Recipe:
    """Read the recipe as the planned run would, on whatever machine the plan is made."""
    if device.is_gpu and not torch.cuda.is_available():
        words = [*words, "--use_cpu", "true"]  # otherwise types that this machine lacks are refused
    with processes(sharding.devices):
        return read_recipe(words)


def _optimizer_of(args: A2TGPOConfig) -> Any:
    """Return the function that makes the recipe's optimiser."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        try:
            kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        except (ImportError, ValueError) as error:
            raise ValueError(f"optim {args.optim}: {error}") from error
        return kind(parameters, **settings)

    return make


def _longest_prompt(recipe: Recipe) -> tuple[int, str]:
    """Return the tokens of the longest prompt, and how they are known; assumed if they cannot be counted."""
    rows = recipe.task.train_dataset
    if rows is not None and is_empty(rows):  # the recipe is for evaluations
        rows = recipe.test_dataset
    if rows is None:
        return PROMPT_TOKENS, "assumed: the environment makes them"
    try:
        chat = make_chat(recipe, load_tokenizer(recipe), load_config(recipe), all_tools(recipe.task))
        prompts = [row["prompt"] for row in islice(rows, ROWS_READ)]
        counts = [len(ids) for ids in chat.prompt_ids(prompts)]
    except (OSError, ValueError) as error:  # a folder without a tokenizer, or without a template
        reason = str(error).partition("\n")[0].partition("!")[0]
        return PROMPT_TOKENS, f"assumed, not counted: {reason}"
    return max(counts), f"the longest of the first {len(counts)} rows"
