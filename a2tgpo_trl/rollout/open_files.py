"""open files after each batch -> whether they leak, reported in time to fix it, and at the latest in time to save.

Environments and pools may open files at any time and keep them, so many open files are not a leak, nor is one more
than before. A leak is a number of files that grows batch after batch.
"""

import math


STEADY = 5  # batches in a row, each with more files open than the one before: not a coincidence
STEEP = 0.25  # of the files that may be open, opened in as few as two such batches: there may be no time for more
FULL = 0.9  # of the files that may be open: the rest is for saving
WARN = 10.0  # batches before that many are open


class OpenFiles:
    """Counts of open files: one before all batches, one after each."""

    def __init__(self, number: int):
        self._first = self._last = number  # of the current rise
        self._batches = 0
        self._allowed = 0

    def see(self, number: int, allowed: int) -> None:
        if number > self._last:
            self._batches += 1
        else:
            self._first, self._batches = number, 0
        self._last, self._allowed = number, allowed

    @property
    def is_full(self) -> bool:
        return self._last >= FULL * self._allowed > 0

    @property
    def batches_left(self) -> float:
        """How many more batches, opening files at the same rate, there is room for; without a leak, infinite.

        Example: 100, 500, 900 files of 1500: 400 a batch, 450 left until there are 1350, so 1.125 batches
        """
        grown = self._last - self._first
        is_leak = self._batches >= STEADY or (self._batches >= 2 and grown >= STEEP * self._allowed)
        if not is_leak:
            return math.inf
        return (FULL * self._allowed - self._last) / (grown / self._batches)

    def __str__(self) -> str:
        return f"The process has {self._last} files and sockets open (limit: {self._allowed})"
