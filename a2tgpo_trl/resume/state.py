"""What the next steps of a process depend on besides what TRL saves, as values that can be saved and restored.

TRL saves weights, optimizer, scheduler, random states and the trainer's log. Each rank also saves the batch of
rollouts that several steps train on, how much of it is used up, and the metrics since the last line of the log.
"""

import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


OF_A_RANK = "rank_{}.pt"
REFERENCE = "reference_model.pt"  # if it follows the policy (sync_ref_model); TRL does not save it


class RandomState:
    """The states of all random number generators of a process, taken when this is made."""

    def __init__(self, device: torch.device):
        self._device = device
        self._python, self._numpy, self._cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._accelerator = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)

    def put_back(self) -> None:
        """Restore the states: the same numbers are drawn from now on as were drawn after they were taken."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._accelerator is not None:
            torch.get_device_module(self._device).set_rng_state(self._accelerator, self._device)


@dataclass
class Snapshot:
    """A trainer's state between two steps, for a checkpoint that is saved after it in the middle of a step."""

    state: dict[str, Any]
    tokens_seen: float
    random_state: RandomState


def as_lists(logs: Any) -> Any:
    """Return deques as lists, at any depth."""
    if isinstance(logs, dict):
        return {name: as_lists(values) for name, values in logs.items()}
    return list(logs) if isinstance(logs, deque) else logs


def refill(logs: Any, saved: Any) -> None:
    """Put saved lists into the deques of the same names; TRL itself makes the deque of a new name."""
    for name, values in saved.items():
        if isinstance(logs[name], deque):
            logs[name].extend(values)
        else:
            refill(logs[name], values)
