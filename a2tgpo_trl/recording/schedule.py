"""steps -> whether a batch that is made after so many of them is one of those so many steps apart."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The first batch of a run, and each first one after a multiple of `every` steps, whether it was resumed or not.

    Args:
        every: steps from one multiple to the next.
        stride: steps from one batch to the next; 1 where a step has several, which are due together.

    Example (every 5, stride 2): batches are made after 0, 2, 4, 6, ... steps -> due after 0, 6, 10, 16, ...
    """

    every: int
    stride: int = 1

    def is_due(self, step: int) -> bool:
        """Whether a multiple lies behind the batch before this one, and not behind this one."""
        return (step - self.stride) // self.every < step // self.every
