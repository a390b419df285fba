"""a function -> a daemon thread that calls it -> a future of the attempt's result: text, error, seconds.

`concurrent.futures` joins its threads when the interpreter exits, so one call that never returns would keep the
process alive forever. These threads are daemons and can be abandoned if their call does not return.
"""

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NamedTuple

from .results import Redaction, as_text, describe


logger = logging.getLogger(__name__)

LEAVING = 1.0  # seconds that the tasks of a loop get to end when it is stopped

_thread = threading.local()
_redacted = Redaction()


def on_tool_thread() -> bool:
    """Whether this thread runs a tool or an environment's method: whatever that calls is part of the same call."""
    return getattr(_thread, "makes_calls", False)


class Attempt(NamedTuple):
    """The result of an attempt, in words. An error is kept, not raised: SystemExit in a tool must not end its
    thread."""

    text: str
    error: BaseException | None
    seconds: float


def attempt(call: Callable[[], Any]) -> Attempt:
    """Call it and describe the result. The text is made here, inside the call: that may take time, or raise."""
    start = time.perf_counter()
    error: BaseException | None = None
    try:
        text = as_text(call())
    except BaseException as raised:  # noqa: BLE001  # SystemExit too: a tool that exits has failed, not the run
        text, error = describe(raised), raised
    return Attempt(_redacted(text), error, time.perf_counter() - start)


async def attempt_async(call: Callable[[], Awaitable[Any]]) -> Attempt:
    """`attempt` for an async tool. Cancellation is an error like any other; nobody waits for it then."""
    start = time.perf_counter()
    try:
        value, error = await call(), None
    except BaseException as raised:  # noqa: BLE001  # a tool may raise CancelledError itself, too
        value, error = describe(raised), raised
    made = attempt(lambda: value)
    return Attempt(made.text, error or made.error, time.perf_counter() - start)


class Worker:
    """A thread that makes one call after the other."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Future[Attempt]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="a2tgpo-tool", daemon=True).start()

    def submit(self, call: Callable[[], Any]) -> "Future[Attempt]":
        future: Future[Attempt] = Future()
        self._jobs.put((call, future))
        return future

    def stop(self) -> None:
        """End the thread once it has made the calls that it was given."""
        self._jobs.put(None)

    def _work(self) -> None:
        _thread.makes_calls = True
        while (job := self._jobs.get()) is not None:
            call, future = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(attempt(call))
                except BaseException as error:  # noqa: BLE001  # the waiting caller must be told
                    future.set_exception(error)
            del job, call, future  # an idle worker must not keep results alive


class Workers:
    """Idle workers by key, to be taken and given back; there are never more than were busy at the same time.

    All calls on an environment have one key, and so one thread, because much of what environments hold (SQLite
    connections, browsers) may be used in one thread only. A tool with concurrency=1 has one key too. All other calls
    share their workers.
    """

    def __init__(self) -> None:
        self._idle: defaultdict[Hashable, list[Worker]] = defaultdict(list)
        self._all: set[Worker] = set()

    def take(self, key: Hashable = None) -> Worker:
        idle = self._idle[key]
        worker = idle.pop() if idle else Worker()
        self._all.add(worker)
        return worker

    def give_back(self, worker: Worker, key: Hashable = None) -> None:
        self._idle[key].append(worker)

    def rename(self, key: Hashable, new: Hashable) -> None:
        """Give the idle workers of one key to another."""
        self._idle[new] += self._idle.pop(key, [])

    def give_up(self, worker: Worker) -> None:
        """Abandon a worker whose call does not return: the thread ends if it ever does."""
        self._all.discard(worker)
        worker.stop()

    def end_idle(self, key: Hashable) -> None:
        """End the idle workers of a key that is no longer used."""
        for worker in self._idle.pop(key, ()):
            self.give_up(worker)

    def stop(self) -> None:
        """End all threads; a busy one ends after its call."""
        for worker in set(self._all):
            self.give_up(worker)
        self._idle.clear()


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self, name: str):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stop(self) -> None:
        """End the loop, and cancel what still runs in it. A blocked loop ends when it can."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
        if threading.current_thread() is not self._thread:  # a call in this loop may hold the last reference to it
            self._thread.join(2 * LEAVING)

    def _run(self) -> None:
        _thread.makes_calls = True
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
                break
            except BaseException as error:  # noqa: BLE001
                # SystemExit in a task that a tool started: asyncio lets it through, and the loop still works.
                logger.warning(f"{self._thread.name}: a task raised {error!r}")
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()  # nobody must wait forever for one of them
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=LEAVING))
        self.loop.close()
