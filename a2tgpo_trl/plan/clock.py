"""a trainer while it trains -> seconds of each of its steps, and of the parts of them that are its methods."""

import time
from typing import Any

import torch
from transformers import TrainerCallback


LOSS = "loss"


def now() -> float:
    """Return the time in seconds, after an accelerator has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepClock(TrainerCallback):
    """Times the steps of a trainer, the forward and backward passes of their loss, and other named methods."""

    def __init__(self, trainer: Any):
        self.seconds: list[float] = []
        self.parts: dict[str, list[float]] = {}  # by name, of each step
        self.time(trainer, "compute_loss", LOSS)
        self.time(trainer.accelerator, "backward", LOSS)
        trainer.add_callback(self)

    def time(self, owner: Any, method: str, part: str) -> None:
        """Count the time that this method takes as this part of a step."""
        function, of_steps = getattr(owner, method), self.parts.setdefault(part, [])

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = now()
            result = function(*args, **kwargs)
            of_steps[-1] += now() - start
            return result

        setattr(owner, method, timed)

    def on_step_begin(self, args, state, control, **kwargs):
        for of_steps in self.parts.values():
            of_steps.append(0.0)
        self._start = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(now() - self._start)
