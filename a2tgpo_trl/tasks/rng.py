"""seed -> random choices that are the same on every machine and Python version.

Python guarantees the same `random()` for a seed, but not the same `choice` or `sample`: only `random()` is used.
"""

import random
from collections.abc import Sequence
from typing import TypeVar


T = TypeVar("T")


class Rng:
    """A seeded source of choices. Example: Rng("questions", 0).below(10)"""

    def __init__(self, *seed: object):
        self._random = random.Random("/".join(map(str, seed)))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random.random() < probability

    def below(self, number: int) -> int:
        """One of 0 .. number - 1."""
        return int(self._random.random() * number)

    def choice(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], number: int) -> list[T]:
        """`number` different items, in a random order."""
        if number > len(items):
            raise ValueError(f"cannot draw {number} of {len(items)} items.")
        pool = list(items)
        for i in range(number):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:number]
