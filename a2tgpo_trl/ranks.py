"""What the ranks tell each other about their rollouts: a few numbers, and lists."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object


Number = TypeVar("Number", int, float)
Result = TypeVar("Result")


class Ranks:
    """The processes of a run. All ranks call these methods together, in the same order."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self.index: int = accelerator.process_index
        self.number: int = accelerator.num_processes

    def own_rows(self, number: int) -> slice:
        """This rank's rows of a gathered tensor to which each rank gave this many."""
        return slice(self.index * number, (self.index + 1) * number)

    def max(self, number: Number) -> Number:
        """The greatest of the ranks' numbers."""
        return self.max_each([number])[0]

    def max_each(self, numbers: list[Number]) -> list[Number]:
        """The greatest of the ranks' numbers, place by place."""
        table = torch.tensor([numbers], device=self._accelerator.device)
        return self._accelerator.gather(table).amax(dim=0).tolist()

    def gather_lists(self, items: list[Any]) -> list[list[Any]]:
        """Each rank's list, which may be of any length, in the order of ranks."""
        return gather_object([items])

    def wait(self) -> None:
        """Wait for the slowest rank."""
        self._accelerator.wait_for_everyone()

    def attempt(self, what: str, act: Callable[[], Result]) -> Result:
        """What `act` returns on this rank. If it fails on any rank, all raise, so none waits for the others."""
        failed: Exception | None = None
        try:
            result = act()
        except Exception as raised:  # told to all ranks, and raised below
            failed = raised
        why = self.first_text(None if failed is None else f"{type(failed).__name__}: {failed}")
        if why is not None:
            raise ValueError(f"{what} failed. {why}") from failed
        return result

    def first_text(self, text: str | None) -> str | None:
        """The text of the first rank that has one."""
        return next((found for found in gather_object([text]) if found is not None), None)
