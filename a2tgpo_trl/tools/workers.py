"""a function and its arguments -> a daemon thread that calls it -> a future of (text, error, seconds).

`concurrent.futures` joins its threads when the interpreter exits, so one call that never returns would keep the
process alive for ever. These threads are daemons, and one that does not come back can be abandoned.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NamedTuple

from .results import as_text, describe


logger = logging.getLogger(__name__)

LEAVING = 1.0  # seconds that the tasks of a loop get to end when it is stopped
CALL = "call of "  # names of tasks, in a loop of async tools, begin with it


_thread = threading.local()


def on_tool_thread() -> bool:
    """Whether a tool, or a method of an environment, runs here: what it calls is part of its own call."""
    return getattr(_thread, "makes_calls", False)


class Answer(NamedTuple):
    """What a call gave, in words. An error is carried, not raised: SystemExit in a tool must not end its thread."""

    text: str
    error: BaseException | None
    seconds: float


def answer(call: Callable[[], Any], clean: Callable[[str], str]) -> Answer:
    """Call it, and say what came of it. The words are made here, with the call: they may take time, or raise."""
    start = time.perf_counter()
    error: BaseException | None = None
    try:
        text = as_text(call())
    except BaseException as raised:  # noqa: BLE001  # SystemExit too: a tool that exits has failed, not the run
        text, error = describe(raised), raised
    return Answer(clean(text), error, time.perf_counter() - start)


async def answer_async(call: Callable[[], Awaitable[Any]], clean: Callable[[str], str]) -> Answer:
    """`answer`, of an async tool. If it is cancelled, that is an error like others; nobody waits for it then."""
    start = time.perf_counter()
    error: BaseException | None = None
    try:
        text = as_text(await call())
    except BaseException as raised:  # noqa: BLE001  # a tool may raise CancelledError of itself, too
        text, error = describe(raised), raised
    return Answer(clean(text), error, time.perf_counter() - start)


class Worker:
    """A thread that makes one call after the other. All calls on an environment are made by its own worker, since
    much of what environments hold (SQLite connections, browsers) may be used in one thread only."""

    def __init__(self, name: str):
        self._jobs: SimpleQueue[tuple[Callable[[], Answer], Future[Answer]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, call: Callable[[], Answer]) -> "Future[Answer]":
        future: Future[Answer] = Future()
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
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001  # whoever waits must hear of it
                    future.set_exception(error)
            del job, call, future  # an idle worker must not keep results alive


class Workers:
    """Idle workers, to be taken and given back; there are never more than were busy at once."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()

    def take(self) -> Worker:
        if self._idle:
            return self._idle.pop()
        worker = Worker("a2tgpo-tool")
        self._all.add(worker)
        return worker

    def give_back(self, worker: Worker) -> None:
        self._idle.append(worker)

    def give_up(self, worker: Worker) -> None:
        """Its call does not come back: the thread ends if it ever does."""
        self._all.discard(worker)
        worker.stop()

    def stop(self) -> None:
        """End all threads; those that are busy, after their call."""
        for worker in self._all:
            worker.stop()
        self._all.clear()
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
        """End the loop, and cancel what still runs in it. One that is blocked ends when it can."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(2 * LEAVING)

    @property
    def busy_with(self) -> str | None:
        """Name of the tool whose call runs this very moment, so that the others wait; None if it cannot be told."""
        task = asyncio.current_task(self.loop)
        return task.get_name().removeprefix(CALL) if task is not None and task.get_name().startswith(CALL) else None

    def _run(self) -> None:
        _thread.makes_calls = True
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
                break
            except BaseException as error:  # noqa: BLE001
                # SystemExit in a task that a tool started: asyncio lets that one through, and the loop is still whole.
                logger.warning(f"{self._thread.name}: a task raised {error!r}")
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()  # nobody must wait for ever for one of them
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=LEAVING))
        self.loop.close()
