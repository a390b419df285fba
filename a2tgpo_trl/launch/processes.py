"""configuration of Accelerate, number of processes, machine -> how the processes are started.

    one process, without a configuration                     this one, so that its exit code is kept; of several GPUs
                                                             it sees the first
    a task of SLURM, one of several on its machine           this one, as a rank
    anything else                                            accelerate launch, through `launcher.py`

Asked for several processes on CPUs, Accelerate silently starts one, unless it is told that they are several GPUs and
that it is to leave GPUs alone. What it would not start as asked is refused here, before anything is loaded.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.commands.config.config_args import ClusterConfig, default_config_file, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from .launched import CPU_INSTEAD, USE_CPU


LAUNCHER = ["-m", "a2tgpo_trl.launch.launcher"]
NOT_SET = ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]  # otherwise it warns that they are not
SEVERAL = ["--multi_gpu"]  # otherwise it starts one
WITHOUT_SHARDS = (DistributedType.NO, DistributedType.MULTI_CPU)
VISIBLE = "CUDA_VISIBLE_DEVICES"
ON_ACCELERATORS = (DistributedType.MULTI_GPU, DistributedType.FSDP, DistributedType.DEEPSPEED)


@dataclass(frozen=True)
class Start:
    """Python's words before `-m MODULE`, and what is added to the environment."""

    words: list[str]
    variables: dict[str, str] = field(default_factory=dict)


def start_here(config_file: Path | None, num_processes: int | None) -> Start:
    """Return how to start processes here; with no configuration given, by the user's default one if it exists."""
    if config_file is None and Path(default_config_file).exists():
        config_file = Path(default_config_file)
    if is_slurm_rank(os.environ):
        if config_file is None:
            raise ValueError(
                "srun has started several tasks on this machine, and without a configuration each would be a separate "
                "run. Give --config_file (multi_gpu, zero3, ...), or srun --ntasks-per-node=1."
            )
        return rank_of_slurm(config_file, num_processes, os.environ)
    return choose_start(config_file, num_processes, count_accelerators())


def choose_start(config_file: Path | None, num_processes: int | None, accelerators: int) -> Start:
    """Return how to start this many processes (None: the configuration's number, or one) on these accelerators."""
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--num_processes must be at least 1; got {num_processes}.")
    if config_file is None:
        return _without_configuration(num_processes or 1, accelerators)
    config = load_config_from_file(str(config_file))
    words = [*LAUNCHER, "--config_file", str(config_file)]
    words += ["--num_processes", str(num_processes)] if num_processes else []
    if not isinstance(config, ClusterConfig):
        return Start(words)
    number = num_processes or config.num_processes
    if config.distributed_type in WITHOUT_SHARDS and number > 1:
        return _copies(config_file, config, words, accelerators)
    if config.use_cpu:
        return Start(words, _on_cpu(config_file, config))
    if config.distributed_type == DistributedType.NO:
        return Start(words, one_gpu(os.environ, accelerators))
    if config.distributed_type in ON_ACCELERATORS:
        _check_number(f"{config_file} asks for", number // config.num_machines, accelerators)
    return Start(words)


def _without_configuration(number: int, accelerators: int) -> Start:
    if number == 1:
        return Start([], one_gpu(os.environ, accelerators))
    words = [*LAUNCHER, "--num_processes", str(number), *NOT_SET]
    if accelerators == 0:
        return Start([*words, *SEVERAL], {USE_CPU: "true"})
    _check_number("--num_processes asks for", number, accelerators)
    return Start(words)


def one_gpu(environment: Mapping[str, str], accelerators: int) -> dict[str, str]:
    """Return variables that show a process one GPU of several: Transformers would spread each batch over all of them,
    and TRL's trainer cannot be spread.

    Example: CUDA_VISIBLE_DEVICES=2,3 -> 2
    """
    if accelerators < 2:
        return {}
    return {VISIBLE: environment.get(VISIBLE, "0").partition(",")[0]}


def _copies(config_file: Path, config: ClusterConfig, words: list[str], accelerators: int) -> Start:
    """Return how to start several processes with the whole model each, where Accelerate would start one."""
    if not config.use_cpu and config.distributed_type == DistributedType.NO and accelerators > 0:
        raise ValueError(
            f"{config_file} has the distributed_type NO, with which Accelerate starts one process instead of several. "
            "Use the configuration multi_gpu."
        )
    return Start([*words, *SEVERAL], {USE_CPU: "true"})


def _check_number(who: str, number: int, accelerators: int) -> None:
    if number > accelerators:
        what_to_do = f"Give --num_processes {accelerators}." if accelerators else CPU_INSTEAD
        raise ValueError(f"{who} {number} processes on this machine, which has {accelerators} GPUs. {what_to_do}")


def _on_cpu(config_file: Path, config: ClusterConfig) -> dict[str, str]:
    """Return the variables that keep processes off the GPUs; an error for FSDP, which cannot be kept off."""
    if config.distributed_type == DistributedType.FSDP:
        raise ValueError(f"{config_file}: on CPUs, Accelerate runs DDP instead of FSDP. {CPU_INSTEAD}")
    # With both variables, Accelerate would leave DeepSpeed out.
    return {"DS_ACCELERATOR": "cpu"} if config.distributed_type == DistributedType.DEEPSPEED else {USE_CPU: "true"}


# ---- SLURM


def is_slurm_rank(environment: Mapping[str, str]) -> bool:
    """Whether srun has started one task per process, not per machine: then nothing else is to be started."""
    return _tasks(environment) > int(environment.get("SLURM_STEP_NUM_NODES", "1"))


def _tasks(environment: Mapping[str, str]) -> int:
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1"))


def rank_of_slurm(config_file: Path, num_processes: int | None, environment: Mapping[str, str]) -> Start:
    """Return the start of this task as a rank: without a launcher, signals and its exit code pass through."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise ValueError(
            f"srun has started several tasks on this machine, one per rank. Set {' and '.join(missing)}, as in "
            "recipes/multi_node.slurm; or give srun --ntasks-per-node=1 to have the ranks started from here."
        )
    tasks = _tasks(environment)
    if num_processes not in (None, tasks):
        raise ValueError(f"--num_processes {num_processes}: srun has already started {tasks} tasks. Leave it out.")
    on_this_machine = tasks // int(environment["SLURM_STEP_NUM_NODES"])
    ranks = {"RANK": environment["SLURM_PROCID"], "LOCAL_RANK": environment["SLURM_LOCALID"]}
    sizes = {"WORLD_SIZE": str(tasks), "LOCAL_WORLD_SIZE": str(on_this_machine)}
    return Start([], {**variables_of(config_file, tasks), **ranks, **sizes})


def variables_of(config_file: Path, num_processes: int | None = None) -> dict[str, str]:
    """Return the variables that Accelerate's launcher and `_on_cpu` add for a configuration."""
    words = ["--config_file", str(config_file), "--main_process_port", "0", "--module", "module"]
    words[:0] = ["--num_processes", str(num_processes)] if num_processes else []
    args, config, mixed_precision_is_set = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.use_deepspeed:
        set_here = [*config.deepspeed_config, *(["mixed_precision"] if mixed_precision_is_set else [])]
        args.deepspeed_fields_from_accelerate_config = ",".join(set_here)
        _, environment = prepare_deepspeed_cmd_env(args)
    else:
        environment = prepare_multi_gpu_env(args)
    added = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    return {**added, **(_on_cpu(config_file, config) if config.use_cpu else {})}


def count_accelerators() -> int:
    """Return the number of accelerators that PyTorch sees on this machine."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0
