"""What the next steps of a process depend on beside what TRL saves, as values that can be saved and put back.

TRL saves weights, optimizer, scheduler, random states and the trainer's log. Beside them each rank saves the batch of
rollouts that several steps train on, how far it is used up, and the metrics since the last line of the log.
"""

import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


OF_A_RANK = "rank_{}.pt"
REFERENCE = "reference_model.pt"  # one that follows the policy (sync_ref_model); TRL saves none


class RandomState:
    """The states of all random number generators of a process, at the moment when it is made."""

    def __init__(self, device: torch.device):
        self._device = device
        self._python, self._numpy, self._cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._accelerator = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)

    def put_back(self) -> None:
        """What is drawn from now on is what was drawn from that moment on."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._accelerator is not None:
            torch.get_device_module(self._device).set_rng_state(self._accelerator, self._device)


@dataclass
class Snapshot:
    """A trainer between two steps: what a checkpoint saved later has to say instead of what is then."""

    state: dict[str, Any]
    tokens_seen: float
    random_state: RandomState


def as_lists(logs: Any) -> Any:
    """Deques as lists, at any depth."""
    if isinstance(logs, dict):
        return {name: as_lists(values) for name, values in logs.items()}
    return list(logs) if isinstance(logs, deque) else logs


def refill(logs: Any, saved: Any) -> None:
    """Put saved lists into the deques of the same names; TRL makes those of a new name itself."""
    for name, values in saved.items():
        if isinstance(logs[name], deque):
            logs[name].extend(values)
        else:
            refill(logs[name], values)
