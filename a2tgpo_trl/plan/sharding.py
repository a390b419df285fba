"""options or an Accelerate configuration -> how weights, gradients and optimiser are spread over devices: `Sharding`.

none, ddp    every device holds all
zero1, 2, 3  DeepSpeed splits the optimiser; and gradients; and weights
fsdp2        all three are split, layer by layer
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..lookup import nearest


KINDS = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp2")
# DeepSpeed's own defaults, in numbers of weights: how many are reduced together, and how many are kept gathered.
REDUCE_BUCKET, LIVE_PARAMETERS = 5e8, 1e9


@dataclass(frozen=True)
class Sharding:
    """How a policy is spread over devices."""

    kind: str = "none"
    devices: int = 1

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"--sharding: there is no kind {self.kind!r}.{nearest(self.kind, KINDS)} Known: {', '.join(KINDS)}."
            )
        if self.kind == "none" and self.devices > 1:
            raise ValueError(f"--sharding none is for one device; {self.devices} need ddp, zero1-3 or fsdp2.")

    @property
    def deepspeed(self) -> bool:
        return self.kind.startswith("zero")

    @property
    def splits_weights(self) -> bool:
        return self.kind in ("zero3", "fsdp2")

    @property
    def splits_gradients(self) -> bool:
        return self.kind in ("zero2", "zero3", "fsdp2")

    @property
    def splits_optimizer(self) -> bool:
        return self.deepspeed or self.kind == "fsdp2"


def of_accelerate(path: Path, devices: int | None = None) -> Sharding:
    """Return the sharding of an Accelerate configuration; `devices` replaces its own number.

    Offloading is refused, because a plan does not know it.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    config: Any = load_config_from_file(str(path))
    devices = devices or max(config.num_processes, 1)
    return Sharding(_kind(config, devices, path), devices)


def _kind(config: Any, devices: int, path: Path) -> str:
    name = str(config.distributed_type.value)
    if name == "DEEPSPEED":
        settings = config.deepspeed_config
        offloads = [
            key for key in settings if key.startswith("offload") and settings[key] not in (None, "none", False)
        ]
        _refuse(offloads, path)
        if "deepspeed_config_file" in settings:
            raise ValueError(
                f"{path}: a plan does not read a deepspeed_config_file. Give --sharding zero2 and --gpus N instead."
            )
        return {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}[int(settings["zero_stage"])]
    if name == "FSDP":
        settings = config.fsdp_config
        _refuse([key for key in settings if "offload" in key and settings[key] not in (None, "none", False)], path)
        return "fsdp2"
    if name in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return "none" if devices == 1 else "ddp"
    raise ValueError(f"{path}: distributed_type {name} cannot be planned. Known: NO, MULTI_GPU, DEEPSPEED, FSDP.")


def _refuse(offloads: list[str], path: Path) -> None:
    if offloads:
        raise ValueError(
            f"{path}: {', '.join(offloads)}: a plan does not account for offloading, and its figures would be wrong. "
            "Plan without it."
        )
