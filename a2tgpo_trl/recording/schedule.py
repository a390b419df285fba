"""the number of steps taken -> whether the batch made then is due."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The first batch of a run and the first after each multiple of `every` steps are due, resumed or not.

    Args:
        every: steps from one multiple to the next.
        stride: steps from one batch to the next; 1 if a step has several batches, which are due together.

    Example (every 5, stride 2): batches are made after 0, 2, 4, 6, ... steps -> due after 0, 6, 10, 16, ...
    """

    every: int
    stride: int = 1

    def is_due(self, step: int) -> bool:
        """Whether there is a multiple after the previous batch, and at or before this one."""
        return (step - self.stride) // self.every < step // self.every
