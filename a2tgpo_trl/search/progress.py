"""passages, one after the other -> a progress line every few seconds."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar


EVERY = 5.0  # seconds
Item = TypeVar("Item")
Tell = Callable[[str], None]


def told(items: Iterable[Item], total: int, what: str, tell: Tell) -> Iterator[Item]:
    """Yield the items, and report progress every few seconds.

    Example: "words: 300,000 of 1,000,000 (30 %), 60 s to go"
    """
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= EVERY:
            last, left = now, (now - start) / done * (total - done)
            tell(f"{what}: {done:,} of {total:,} ({done / total:.0%}), {left:.0f} s to go")
        yield item
