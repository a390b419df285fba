"""the name of a GPU, or this machine -> how much memory a process has: `Device`."""

import os
import re
from dataclasses import dataclass

import psutil
import torch

from ..lookup import nearest


GB, GIB = 1e9, 2**30
# GB, from the makers' data sheets. Kinds that are sold in several sizes have the size in the name: a100-40gb.
GPUS = {
    "h100": 80,
    "h100-pcie": 80,
    "h200": 141,
    "h20": 96,
    "b200": 180,
    "l40s": 48,
    "l4": 24,
    "a10g": 24,
    "rtx4090": 24,
    "mi300x": 192,
}
SIZED = ("a100-40gb", "a100-80gb", "h100-80gb")
CONTEXT_BYTES = 0.8 * GIB  # of CUDA in each process: commonly seen, not measured here
THIS = "this"


@dataclass(frozen=True)
class Device:
    """What one process runs on."""

    name: str
    memory_bytes: float
    is_gpu: bool = True

    @property
    def runtime_bytes(self) -> float:
        """The memory that the device's own software takes."""
        return CONTEXT_BYTES if self.is_gpu else 0.0


def named(name: str) -> Device:
    """Return a GPU of this kind; any name that ends in its gigabytes works.

    Example: "rtx4090" -> 24 GB; "a100-40gb" -> 40 GB; "16gb" -> 16 GB
    """
    name = name.lower()
    sized = re.fullmatch(r"(?:.*-)?([1-9]\d*)gb", name)
    if sized is None and name not in GPUS:
        known = [*GPUS, *SIZED, THIS]
        raise ValueError(
            f"--gpu: there is no kind {name!r}.{nearest(name, known)} Known: {', '.join(known)}, and any name that "
            "ends in its memory, such as 48gb."
        )
    return Device(name, (int(sized[1]) if sized else GPUS[name]) * GB)


def this_machine(processes: int) -> Device:
    """Return the GPU of a process on this machine; without one, its share of the memory."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Device(found.name, found.total_memory)
    return Device(f"CPU ({os.cpu_count()} cores)", psutil.virtual_memory().total / processes, is_gpu=False)
