"""a call -> one attempt at it: in a thread, a process or an event loop, for no longer than its time.

What does not come back is abandoned and counted: its thread is held until the call ends, and another takes its place.
"""

import asyncio
import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from .hung import HungCalls
from .process import ProcessWorker
from .results import Redaction
from .settings import ToolSettings
from .workers import CALL, Answer, LoopThread, Worker, Workers, answer, answer_async


ENDING = 1.0  # seconds that a cancelled async call, or a killed process, gets to end
STARTING = 120.0  # seconds that the process of a tool may take to start: it may import much


@dataclass(frozen=True)
class Request:
    """A call to be made: a tool, its arguments, and the environment that it belongs to, if any."""

    function: Callable
    arguments: Mapping[str, Any]
    owner: Any = None
    # Where they are not those of the function: its settings, and the name that messages have for it.
    settings: ToolSettings | None = None
    label: str | None = None

    @property
    def name(self) -> str:
        return self.label or self.function.__name__


@dataclass
class Lane:
    """An environment's own order and thread; `stuck` once a call has not come back."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    worker: Worker | None = None
    stuck: bool = False


@dataclass(frozen=True)
class Limits:
    """For all tools together, where a tool does not say otherwise."""

    concurrency: int = 64
    timeout: float | None = 60.0
    # Calls that may be out at once without having come back in time, before further ones wait.
    hung: int = 16
    # Seconds that a tool which is down, or calls that do not come back, are waited for; and whether the run is to stop
    # if the tool stays down.
    patience: float = 300.0
    stop_when_down: bool = True


class Attempts:
    """Makes attempts, from within one event loop. Threads are daemons: one a call at once, one an environment."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self._redact = Redaction()
        self._async_tools: LoopThread | None = None
        self._workers = Workers()
        self._own_worker: dict[str, Worker] = {}  # of tools with concurrency=1: their thread, while it is idle
        self._processes: set[ProcessWorker] = set()
        self._idle_processes: dict[str, list[ProcessWorker]] = {}
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._slots_of_tool: dict[str, asyncio.Semaphore] = {}
        # By id of an environment, as long as that lives: some cannot be hashed.
        self._lanes: dict[int, tuple[weakref.ref, Lane]] = {}
        self.hung = HungCalls(limits.hung)
        self.abandoned = 0  # calls so far that did not come back in time
        # Why the run should stop, or None.
        self.trouble: str | None = None

    def timeout(self, settings: ToolSettings) -> float | None:
        """Seconds that an attempt may take."""
        return self.limits.timeout if settings.timeout is None else settings.timeout

    def lane(self, owner: Any) -> Lane:
        """The order and thread of an environment."""
        key = id(owner)
        if key not in self._lanes:
            self._lanes[key] = (weakref.ref(owner, lambda _: self._close_lane(key)), Lane())
        return self._lanes[key][1]

    def construct(self, factory: Callable[[], Any]) -> Any:
        made: list[Any] = []
        worker = Worker("a2tgpo-environment")
        found = self._begin(worker, lambda: made.append(factory())).result()
        if found.error is not None:
            worker.stop()
            raise found.error
        self.lane(made[0]).worker = worker
        return made[0]

    def is_stuck(self, owner: Any) -> bool:
        _, lane = self._lanes.get(id(owner), (None, None))
        return lane is not None and lane.stuck

    def forget(self, owner: Any) -> None:
        self._close_lane(id(owner))

    def _close_lane(self, key: int) -> None:
        _, lane = self._lanes.pop(key, (None, None))
        if lane is not None and lane.worker is not None:
            lane.worker.stop()

    def close(self) -> None:
        """End all threads and processes. Calls that are out are cancelled; a thread ends when its call comes back."""
        if self._async_tools is not None:
            self._async_tools.stop()
        for key in list(self._lanes):
            self._close_lane(key)
        self._workers.stop()
        for process in self._processes:
            process.close()

    @asynccontextmanager
    async def place(self, request: Request, settings: ToolSettings) -> AsyncIterator[None]:
        """One of the places that there are for calls at once: of the tool's own, if it has a limit, and of all."""
        async with AsyncExitStack() as slots:
            if settings.concurrency is not None:
                fresh = asyncio.Semaphore(settings.concurrency)
                await slots.enter_async_context(self._slots_of_tool.setdefault(request.name, fresh))
            await slots.enter_async_context(self._slots)
            yield

    async def make(self, request: Request, settings: ToolSettings, lane: Lane | None) -> Answer | None:
        """What the tool answered; None if it did not within its time."""
        if inspect.iscoroutinefunction(request.function):
            return await self._in_loop(request, settings, lane)
        if settings.process:
            return await self._in_process(request, settings)
        return await self.in_thread(request, settings, lane)

    async def in_thread(self, request: Request, settings: ToolSettings, lane: Lane | None = None) -> Answer | None:
        """As `make`, in a thread whatever the settings say, and at once however many calls are out."""
        if lane is None:
            # One call at once may as well be made on one thread, for tools that are not made for several.
            alone = settings.concurrency == 1 and request.name in self._own_worker
            worker = self._own_worker.pop(request.name) if alone else self._workers.take()
        else:
            worker = lane.worker = lane.worker or Worker("a2tgpo-environment")
        future = self._begin(worker, lambda: request.function(**request.arguments))
        found = await _in_time(future, self.timeout(settings))
        if lane is None and found is not None:
            if settings.concurrency == 1:
                self._own_worker[request.name] = worker
            else:
                self._workers.give_back(worker)
        elif found is None and not (lane is not None and await self._cancelled(request, settings, future)):
            self._abandon(request.name, future)
            self._workers.give_up(worker)
            if lane is not None:
                lane.worker, lane.stuck = None, True
        return found

    async def _cancelled(self, request: Request, settings: ToolSettings, future: "Future[Answer]") -> bool:
        """Whether a call on an environment that can end its calls has come back since."""
        if settings.cancel is None:
            return False
        if not future.done():  # it never began, or has come back just now: what it used is for the next call
            settings.cancel(request.owner)
        ended = await _done_within(future, ENDING)
        self.abandoned += ended
        return ended

    def _begin(self, worker: Worker, call: Callable[[], Any]) -> "Future[Answer]":
        return worker.submit(lambda: answer(call, self._redact))

    async def _in_process(self, request: Request, settings: ToolSettings) -> Answer | None:
        process, worker = self._take_process(request), self._workers.take()
        found = None if process.alive else await self._failed_to_start(process, worker)
        if found is None:
            future = self._begin(worker, lambda: process.call(request.arguments))
            found = await _in_time(future, self.timeout(settings))
        if found is None:
            process.kill()
            if not await _done_within(future, ENDING):  # it hangs in the kernel
                self._abandon(request.name, future)
                self._workers.give_up(worker)
                return None
            self.abandoned += 1
        self._workers.give_back(worker)
        if process.alive:
            self._idle_processes[request.name].append(process)
        else:
            self._processes.discard(process)
        return found

    def _take_process(self, request: Request) -> ProcessWorker:
        idle = self._idle_processes.setdefault(request.name, [])
        while idle:
            process = idle.pop()
            if process.alive:
                return process
            self._processes.discard(process)
        process = ProcessWorker(request.function)
        self._processes.add(process)
        return process

    async def _failed_to_start(self, process: ProcessWorker, worker: Worker) -> Answer | None:
        """Why it could not be started, if so. That takes its own time, and none of the call's."""
        future = self._begin(worker, process.start)
        if not await _done_within(future, STARTING):
            process.kill()
            await _done_within(future, ENDING)
            return Answer(f"Error: the tool's process did not start within {STARTING:g} seconds", TimeoutError(), 0.0)
        found = future.result()
        return None if found.error is None else found._replace(seconds=0.0)

    async def _in_loop(self, request: Request, settings: ToolSettings, lane: Lane | None) -> Answer | None:
        loop = self._async_tools = self._async_tools or LoopThread("a2tgpo-async-tools")
        running: list[asyncio.Task] = []
        future = loop.submit(_answer_in_loop(request, self._redact, running))
        found = await _in_time(future, self.timeout(settings))
        if found is None and not await self._ended(request.name, loop, running) and lane is not None:
            lane.stuck = True
        return found

    async def _ended(self, name: str, loop: LoopThread, running: list[asyncio.Task]) -> bool:
        """Whether a call that was cancelled has ended. It may go on all the same, or block the loop of all."""
        end, ping = loop.submit(_end_of(running)), loop.submit(asyncio.sleep(0))
        if await _done_within(end, ENDING):
            self.abandoned += 1
            return True
        if ping.done():
            self._abandon(name, end)
        elif loop is self._async_tools:  # the next calls get another; this one counts once, whoever waits in it
            self._async_tools = None
            self._abandon(loop.busy_with or name, loop.submit(_retire()))
        else:
            self.abandoned += 1
        return False

    # ---- what does not come back

    def _abandon(self, name: str, future: "Future[Any]") -> None:
        self.abandoned += 1
        self.hung.add(name, future)

    def ask_to_stop(self, why: str) -> None:
        """Leave the first reason for whoever runs the rollouts."""
        self.trouble = self.trouble or why


async def _done_within(future: "Future[Any]", seconds: float | None) -> bool:
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Any) -> None:
        with suppress(RuntimeError):  # the runner was closed, and nobody waits any more
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(tell)
    with suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), seconds)
    return future.done()


async def _in_time(future: "Future[Answer]", seconds: float | None) -> Answer | None:
    """The answer; None if there is none by then, and the call, if it can be, cancelled."""
    if await _done_within(future, seconds):
        return future.result()
    future.cancel()
    return None


# ---- in the loop of async tools


async def _answer_in_loop(request: Request, clean: Callable[[str], str], running: list[asyncio.Task]) -> Answer:
    task = asyncio.current_task()
    assert task is not None
    task.set_name(CALL + request.name)
    running.append(task)
    return await answer_async(lambda: request.function(**request.arguments), clean)


async def _end_of(running: list[asyncio.Task]) -> None:
    if running:  # otherwise it was cancelled before it began
        await asyncio.wait(running)


async def _retire() -> None:
    """In a loop that was blocked and has come back: let it end when the other calls in it are done."""
    loop = asyncio.get_running_loop()
    calls = [task for task in asyncio.all_tasks() if task.get_name().startswith(CALL)]
    asyncio.gather(*calls, return_exceptions=True).add_done_callback(lambda _: loop.stop())
