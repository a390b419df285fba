"""Calls of tools, made and waited for; slow tools and environments."""

import asyncio
import sqlite3
import threading
import time

from a2tgpo_trl.tools.calls import ToolCall


def requests(function, number=1, environment=None, /, **arguments):
    """The same call, `number` times."""
    return [ToolCall(function, arguments, environment) for _ in range(number)]


def call(runner, function, environment=None, /, **arguments):
    """Make one call and wait for it."""
    (outcome,) = runner.run(requests(function, 1, environment, **arguments))
    return outcome


def timed(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def becomes(condition, seconds=10.0):
    """Whether the condition becomes true within a time that is long even on the slowest machine."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def local_tool():
    def inner() -> str:
        return ""

    return inner


class Gauge:
    """Counts how many callers are in it at the same time."""

    def __init__(self):
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_):
        with self._lock:
            self.now -= 1


def nap(seconds: float = 0.2) -> str:
    time.sleep(seconds)
    return "slept"


async def anap(seconds: float = 0.2) -> str:
    await asyncio.sleep(seconds)
    return "slept"


class Notebook:
    """An environment with a connection that only one thread may use."""

    def open(self) -> str:
        self.connection = sqlite3.connect(":memory:")
        self.connection.execute("create table notes (text)")
        return nap(0.05)

    def write(self, text: str) -> str:
        self.connection.execute("insert into notes values (?)", [text])
        time.sleep(0.05)
        return str(self.connection.execute("select group_concat(text) from notes").fetchone()[0])

    async def awrite(self, text: str) -> str:
        await asyncio.sleep(0.01)
        return f"async {text}"

    def sleep(self, seconds: float) -> str:
        return nap(seconds)
