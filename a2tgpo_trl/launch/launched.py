"""what a launcher put into the environment, and the trainer's accelerator -> an error if they do not agree.

Accelerate silently drops some of what it is asked for: several processes on a machine without GPUs become one, FSDP on
CPUs becomes DDP, and DeepSpeed on CPUs becomes several runs that know nothing of each other. A run that is not what
was asked for must not start.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from accelerate.utils import DistributedType, str_to_bool


if TYPE_CHECKING:
    from accelerate import Accelerator
    from trl import GRPOConfig

USE_CPU, USE_FSDP, USE_DEEPSPEED = "ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
CPU_INSTEAD = "On CPUs, use the configuration cpu_ddp, cpu_zero2 or cpu_zero3."


def is_on(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a variable is set to one of the values that Accelerate takes for yes."""
    return bool(str_to_bool(environment.get(name, "false")))


def deepspeed_on_cpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether DeepSpeed was asked for and will run on CPUs, where ranks find each other only with `use_cpu`."""
    on_cpu = environment.get("DS_ACCELERATOR") == "cpu" or not torch.accelerator.is_available()
    return is_on(USE_DEEPSPEED, environment) and on_cpu


def check_launch(args: "GRPOConfig", accelerator: "Accelerator", environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a run with fewer processes, or another sharding, than was asked for."""
    kind = accelerator.distributed_type
    _check_processes(accelerator.num_processes, kind, environment)
    if (args.fsdp or is_on(USE_FSDP, environment)) and kind != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was requested, but Accelerate runs {_in_words(kind)}: it shards over accelerators only, so each "
            f"process would hold the whole model. {CPU_INSTEAD}"
        )
    if (args.deepspeed or is_on(USE_DEEPSPEED, environment)) and kind != DistributedType.DEEPSPEED:
        raise ValueError(
            f"DeepSpeed was requested, but Accelerate runs {_in_words(kind)}: it does not use DeepSpeed if {USE_CPU} "
            f"is set. Unset it. {CPU_INSTEAD}"
        )


def _check_processes(present: int, kind: DistributedType, environment: Mapping[str, str]) -> None:
    started = environment.get("WORLD_SIZE")
    if started is not None and int(started) != present:
        if kind == DistributedType.DEEPSPEED:
            remedy = (
                "Set use_cpu to true: without it, Accelerate keeps DeepSpeed's CPU processes from finding each other."
            )
        else:
            remedy = f"Without GPUs, set {USE_CPU}=true, or use one of the cpu configurations (cpu_ddp)."
        raise ValueError(
            f"{started} processes were started, but this one sees {present}: each would train on its own, on the same "
            f"rows and into the same folder. {remedy}"
        )
    # Accelerate sets the address where processes meet if it is to start several; nothing else tells that it was.
    launched, meets = "ACCELERATE_MIXED_PRECISION" in environment, "MASTER_ADDR" in environment
    if started is None and launched and meets and present == 1:
        raise ValueError(
            "Accelerate was asked for several processes but started one, as it does on CPUs and with distributed_type "
            "NO. Start them with a2tgpo train RECIPE --config_file cpu_ddp --num_processes N, or set "
            f"{USE_CPU}=true and give accelerate launch --multi_gpu. If you want only one, unset MASTER_ADDR."
        )


def _in_words(kind: DistributedType) -> str:
    return "one process" if kind == DistributedType.NO else f"{kind.value}"
