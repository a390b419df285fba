"""a device -> a description of what the numbers of a bench were measured on."""

import os
import platform
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """Return the accelerator's name, or the processor's with its cores and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = named[0] if named else processor
    return f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
