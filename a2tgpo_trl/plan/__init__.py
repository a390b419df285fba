"""a recipe, a kind of GPU and assumptions -> memory of each device and seconds of each stage, before anything is run.

    recipe, config -> policy without weights (policy.py, tracing.py) ----> memory.py  --> Plan --> report.py
    Accelerate's configuration -> how it is split (sharding.py)       ----> seconds.py -->
    data sheet, or this machine measured (hardware.py, calibration.py) ->
    assumptions, or rollouts on record (lengths.py) ------------------->

Nothing is fitted: operations are counted by running the model's own code on tensors without values, and what a device
makes of them is a data sheet's figures with an assumed share, or a measurement of the machine at hand.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, Trainer

from ..config import A2TGPOConfig
from ..preflight.loading import load_config
from ..recipe.recipe import Recipe, read_recipe
from .hardware import Machine
from .lengths import Lengths
from .memory import Memory, plan_memory
from .policy import Parameters, Policy
from .seconds import Case, plan_seconds
from .setting import Setting, setting_of, training_of
from .sharding import Sharding


FITS = 0.9  # of a device's memory: what allocators leave unused between blocks is not counted


@dataclass(frozen=True)
class Plan:
    """What a run would take. `memory` with the lengths assumed, `full_memory` with the longest that there can be."""

    model: str
    parameters: Parameters
    machine: Machine
    sharding: Sharding
    setting: Setting
    lengths: Lengths
    memory: Memory
    full_memory: Memory
    seconds: dict[str, float]  # of an optimiser step, by stage
    steps: int

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def bottleneck(self) -> str:
        return max(self.seconds, key=lambda stage: self.seconds[stage])

    @property
    def hours(self) -> float:
        return self.steps * self.step_seconds / 3600

    @property
    def fits(self) -> bool:
        return self.full_memory.peak <= FITS * self.machine.memory_bytes

    @property
    def rollouts(self) -> int:
        """Of an optimiser step, on all devices."""
        return round(self.setting.generated * self.setting.generations) * self.sharding.devices


@contextmanager
def processes(number: int) -> Iterator[None]:
    """Read recipes as in a run of so many processes: sizes of batches are checked against them."""
    setattr(A2TGPOConfig, "world_size", number)  # noqa: B010  # over a property of the parent
    try:
        yield
    finally:
        delattr(A2TGPOConfig, "world_size")


def read_for(words: Sequence[str], sharding: Sharding, accelerated: bool) -> Recipe:
    """The recipe as the planned run would read it, on whatever machine the plan is made."""
    if accelerated and not torch.cuda.is_available():
        words = [*words, "--use_cpu", "true"]  # else types that this machine lacks are refused
    with processes(sharding.devices):
        return read_recipe(words)


def load_policy(recipe: Recipe, sharding: Sharding, accelerated: bool) -> Policy:
    """The recipe's policy without weights."""
    try:
        config = load_config(recipe)
    except (OSError, ValueError) as error:
        raise ValueError(f"{recipe.where}model_name_or_path {recipe.base_name!r}: {error}") from error
    return Policy(config, training_of(recipe, config, sharding, accelerated), _optimizer_of(recipe.args))


def _optimizer_of(args: A2TGPOConfig) -> Any:
    """What makes the recipe's optimiser."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        try:
            kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        except (ImportError, ValueError) as error:
            raise ValueError(f"optim {args.optim}: {error}") from error
        return kind(parameters, **settings)

    return make


def make_plan(
    recipe: Recipe, policy: Policy, machine: Machine, sharding: Sharding, lengths: Lengths, server_gpus: int = 1
) -> Plan:
    """Memory and seconds of this policy, trained so, on so many of these devices."""
    config: PreTrainedConfig = policy.config
    setting = setting_of(recipe, config, sharding, server_gpus)
    memory, full_memory = (plan_memory(policy, setting, sharding, lengths, machine, full) for full in (False, True))
    return Plan(
        model=f"{recipe.base_name} ({(config.architectures or [config.model_type])[0]})",
        parameters=policy.parameters,
        machine=machine,
        sharding=sharding,
        setting=setting,
        lengths=lengths,
        memory=memory,
        full_memory=full_memory,
        seconds=plan_seconds(Case(policy, setting, sharding, lengths, machine)),
        steps=count_steps(recipe, setting, sharding),
    )


def count_steps(recipe: Recipe, setting: Setting, sharding: Sharding) -> int:
    """max_steps, or as many as the epochs need: each prompt is rolled out `num_generations` times, and each batch of
    rollouts serves `num_iterations` updates."""
    args = recipe.args
    if args.max_steps > 0:
        return args.max_steps
    rows: Any = recipe.task.train_dataset
    try:
        number = len(rows)
    except TypeError:
        raise ValueError(f"{recipe.where}a data set that is streamed has no length: set max_steps.") from None
    rollouts = setting.rows * setting.micro_batches * sharding.devices
    prompts = rollouts / (args.num_generations * args.num_iterations)
    return max(1, round(args.num_train_epochs * number / prompts))
