"""calls that are past their time limit -> whether another may be made, or has to wait until some have returned.

Each holds a thread. A server that stalls for a while holds many and releases them all; a tool that hangs for good
never does. Only time tells the two apart, so too many of them are a reason first to wait, and then to stop.
"""

import asyncio
import threading
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from typing import Any


# Calls lost in past outages do not count against the tool, up to this number, because each holds a thread.
MOST_EXCUSED = 256


class HungCalls:
    """The calls that have not returned in time, by tool. `most` of them may be out; used from one event loop."""

    def __init__(self, most: int):
        self._most = most
        self._out: dict[Future[Any], str] = {}
        self._excused: set[Future[Any]] = set()
        self._never_counted: set[str] = set()
        self._lock = threading.Lock()  # calls return on other threads
        self._came_back = asyncio.Event()

    def __len__(self) -> int:
        with self._lock:
            return len(self._out)

    def add(self, name: str, future: "Future[Any]") -> None:
        with self._lock:
            self._out[future] = name
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda done: self._remove(done, loop))

    def _remove(self, future: "Future[Any]", loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            del self._out[future]
            self._excused.discard(future)
        with suppress(RuntimeError):  # the runner was closed, and nobody waits any more
            loop.call_soon_threadsafe(self._came_back.set)

    def excuse(self, name: str) -> None:
        """Stop counting the calls of this tool that are out: they were lost in an outage that is over."""
        with self._lock:
            lost = [future for future, tool in self._out.items() if tool == name and future not in self._excused]
            self._excused.update(lost[: MOST_EXCUSED - len(self._excused)])

    def never_count(self, name: str) -> None:
        """Never let calls of this name hold up others, however many are out."""
        self._never_counted.add(name)

    def blocked_tools(self) -> set[str]:
        """The tools whose late calls are out, if there are too many of these calls."""
        with self._lock:
            held = [name for future, name in self._out.items() if future not in self._excused]
        counted = [name for name in held if name not in self._never_counted]
        return set(counted) if len(counted) > self._most else set()

    def is_blocked(self, name: str) -> bool:
        """Whether this tool must not be called because too many calls are out, its own among them."""
        return name in self.blocked_tools()

    async def make_room(self, name: str, seconds: float) -> bool:
        """Wait until enough calls have returned. False if they have not within this time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.is_blocked(name):
            if (left := end - loop.time()) <= 0:
                return False
            self._came_back.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._came_back.wait(), left)
        return True

    def __str__(self) -> str:
        """Example: 3 calls have not returned: search (2), load (1)"""
        with self._lock:
            counts = Counter(self._out.values())
        return f"{counts.total()} calls have not returned: {', '.join(f'{t} ({n})' for t, n in counts.most_common())}"
