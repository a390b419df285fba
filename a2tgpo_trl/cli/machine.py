"""a device -> a description of what the numbers of a bench were measured on."""

import os

import torch

from ..report.provenance import processor


def device_name(device: torch.device) -> str:
    """Return the accelerator's name, or the processor's with its cores and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
