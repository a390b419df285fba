"""a call -> one attempt at it: in a thread, a process or an event loop, within its time limit.

A call that does not return in time is abandoned and counted. It holds its thread until it ends; another thread takes
the place.
"""

import asyncio
import inspect
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from .calls import SECONDS, ToolCall
from .hung import HungCalls
from .process import ProcessPool, ProcessWorker
from .results import describe
from .settings import ToolSettings
from .workers import Attempt, LoopThread, Workers, attempt_async


logger = logging.getLogger(__name__)

ENDING = 1.0  # seconds that a cancelled async call, or a killed process, gets to end
STARTING = 120.0  # seconds that a tool's process may take to start: its imports may be slow
CALL = "call of "  # prefix of task names in the loop of async tools


@dataclass
class CallOrder:
    """Makes the calls on one environment one after the other, and no more once one has not returned in time."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    stuck: bool = False


class Attempts:
    """Makes attempts, from within one event loop. Each running call and each environment has a daemon thread."""

    def __init__(self, concurrency: int, hung: HungCalls):
        self._hung = hung
        self.abandoned = 0  # attempts so far that did not return in time
        self._failed_to_cancel: set[str] = set()  # tools whose failing `cancel` was logged
        self._workers = Workers()
        self._processes = ProcessPool()
        self._loop: LoopThread | None = None  # of async tools
        self._slots = asyncio.Semaphore(concurrency)
        self._slots_of_tool: dict[str, asyncio.Semaphore] = {}
        # By id of the environment, while it lives: some environments cannot be hashed.
        self._orders: dict[int, tuple[weakref.ref, CallOrder]] = {}

    # ---- environments

    def order_of(self, environment: Any) -> CallOrder:
        """The order of an environment's calls; a new one for a call without an environment."""
        if environment is None:
            return CallOrder()
        key = id(environment)
        if key not in self._orders:
            self._orders[key] = (weakref.ref(environment, lambda _: self._forget(key)), CallOrder())
        return self._orders[key][1]

    def construct(self, factory: Callable[[], Any]) -> Any:
        """Make an environment on the thread that will make its calls. Raises what the factory raises."""
        made: list[Any] = []
        worker = self._workers.take("new environment")
        error = worker.submit(lambda: made.append(factory())).result().error
        if error is not None:
            self._workers.give_up(worker)
            raise error
        self.order_of(made[0])
        self._workers.give_back(worker, id(made[0]))
        return made[0]

    def is_environment(self, owner: Any) -> bool:
        """Whether `owner` is an environment in use, whose calls are made in order."""
        return id(owner) in self._orders

    def adopt(self, place: Any, environment: Any) -> None:
        """Give an environment that a call on `place` made the thread of that call."""
        self.order_of(environment)
        self._workers.rename(id(place), id(environment))

    def is_stuck(self, environment: Any) -> bool:
        _, order = self._orders.get(id(environment), (None, None))
        return order is not None and order.stuck

    def forget(self, environment: Any) -> None:
        self._forget(id(environment))

    def _forget(self, key: int) -> None:
        self._orders.pop(key, None)
        self._workers.end_idle(key)

    def close(self) -> None:
        """End all threads and processes. Running calls are cancelled; a thread ends when its call returns."""
        if self._loop is not None:
            self._loop.stop()
        self._workers.stop()
        self._processes.close()

    # ---- one attempt

    @asynccontextmanager
    async def place(self, call: ToolCall, settings: ToolSettings) -> AsyncIterator[None]:
        """Hold a place under the tool's `concurrency`, if it has one, and one under the limit for all tools."""
        async with AsyncExitStack() as slots:
            if settings.concurrency is not None:
                fresh = asyncio.Semaphore(settings.concurrency)
                await slots.enter_async_context(self._slots_of_tool.setdefault(call.name, fresh))
            await slots.enter_async_context(self._slots)
            yield

    async def make(self, call: ToolCall, settings: ToolSettings, order: CallOrder) -> Attempt | None:
        """Return the tool's answer, or None if it took too long. Starts immediately, however many calls run."""
        if inspect.iscoroutinefunction(call.function):
            made = await self._in_loop(call, settings, order)
        elif settings.process:
            made = await self._in_process(call, settings)
        else:
            made = await self._in_thread(call, settings, order)
        self.abandoned += made is None
        return made

    async def _in_thread(self, call: ToolCall, settings: ToolSettings, order: CallOrder) -> Attempt | None:
        key: Hashable = call.name if settings.concurrency == 1 else None
        if call.environment is not None:
            key = id(call.environment)
        worker = self._workers.take(key)
        future = worker.submit(lambda: _limited(call, settings))
        made = await _in_time(future, settings.timeout)
        if made is not None or await self._is_cancelled(call, settings, future):
            self._workers.give_back(worker, key)
        else:
            self._hung.add(call.name, future)
            self._workers.give_up(worker)
            order.stuck = call.environment is not None
        return made

    async def _is_cancelled(self, call: ToolCall, settings: ToolSettings, future: "Future[Attempt]") -> bool:
        """Cancel a late call, if its environment can, and return whether the call has ended since."""
        if call.environment is None or settings.cancel is None:
            return False
        if not future.done():  # otherwise it has just returned, or never began: `cancel` would hit the next call
            try:
                settings.cancel(call.environment)
            except Exception as error:  # noqa: BLE001  # user code may raise anything; the call is late all the same
                self._warn_of_cancel(call.name, error)
        return await _done_within(future, ENDING)

    def _warn_of_cancel(self, name: str, error: Exception) -> None:
        if name not in self._failed_to_cancel:
            self._failed_to_cancel.add(name)
            raised = describe(error).removeprefix("Error: ")
            logger.warning(
                f"cancel() of the tool {name} raised {raised}. Late calls are waited for and then given up."
            )

    async def _in_process(self, call: ToolCall, settings: ToolSettings) -> Attempt | None:
        process, worker = self._processes.take(call.function), self._workers.take()
        made = None
        if not process.alive:
            future = worker.submit(process.start)
            made = await _failed_to_start(process, future)
        if made is None:
            future = worker.submit(lambda: process.call(call.arguments))
            made = await _in_time(future, settings.timeout)
        if made is None:
            process.kill()
        if made is None and not await _done_within(future, ENDING):  # it hangs in the kernel
            self._hung.add(call.name, future)
            self._workers.give_up(worker)
        else:
            self._workers.give_back(worker)
            self._processes.give_back(process, call.function)
        return made

    async def _in_loop(self, call: ToolCall, settings: ToolSettings, order: CallOrder) -> Attempt | None:
        loop = self._loop = self._loop or LoopThread("a2tgpo-async-tools")
        running: list[asyncio.Task] = []
        made = await _in_time(loop.submit(_attempt_in_loop(call, settings.timeout, running)), settings.timeout)
        if made is None and not await self._has_ended(call.name, loop, running):
            order.stuck = call.environment is not None
        return made

    async def _has_ended(self, name: str, loop: LoopThread, running: list[asyncio.Task]) -> bool:
        """Whether a cancelled call has ended. It may ignore the cancellation, or block the loop for all calls."""
        end, ping = loop.submit(_end_of(running)), loop.submit(asyncio.sleep(0))
        if await _done_within(end, ENDING):
            return True
        if ping.done():
            self._hung.add(name, end)
        elif loop is self._loop:  # further calls get a new loop; this one counts once, however many calls wait in it
            self._loop = None
            self._hung.add(_call_in(loop) or name, loop.submit(_retire()))
        return False


async def _done_within(future: "Future[Any]", seconds: float | None) -> bool:
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Any) -> None:
        with suppress(RuntimeError):  # the runner was closed, and nobody waits any more
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(tell)
    with suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), seconds)
    return future.done()


async def _in_time(future: "Future[Attempt]", seconds: float | None) -> Attempt | None:
    """Return the result; after `seconds`, cancel the call if possible and return None."""
    if await _done_within(future, seconds):
        return future.result()
    future.cancel()
    return None


def _limited(call: ToolCall, settings: ToolSettings) -> Any:
    SECONDS.set(settings.timeout)
    return call.function(**call.arguments)


async def _failed_to_start(process: ProcessWorker, future: "Future[Attempt]") -> Attempt | None:
    """Return the error if the process could not be started. Starting does not count towards the call's timeout."""
    if not await _done_within(future, STARTING):
        process.kill()
        await _done_within(future, ENDING)
        return Attempt(f"Error: the tool's process did not start within {STARTING:g} seconds", TimeoutError(), 0.0)
    made = future.result()
    return None if made.error is None else made._replace(seconds=0.0)


# ---- in the loop of async tools


async def _attempt_in_loop(call: ToolCall, seconds: float | None, running: list[asyncio.Task]) -> Attempt:
    task = asyncio.current_task()
    assert task is not None
    task.set_name(CALL + call.name)
    running.append(task)
    SECONDS.set(seconds)
    return await attempt_async(lambda: call.function(**call.arguments))


async def _end_of(running: list[asyncio.Task]) -> None:
    if running:  # otherwise it was cancelled before it began
        await asyncio.wait(running)


def _call_in(loop: LoopThread) -> str | None:
    """Name of the tool whose call is running now and makes the others wait; None if unknown."""
    task = asyncio.current_task(loop.loop)
    return task.get_name().removeprefix(CALL) if task is not None and task.get_name().startswith(CALL) else None


async def _retire() -> None:
    """Stop a loop that was blocked, once it runs again and the other calls in it are done."""
    loop = asyncio.get_running_loop()
    calls = [task for task in asyncio.all_tasks() if task.get_name().startswith(CALL)]
    asyncio.gather(*calls, return_exceptions=True).add_done_callback(lambda _: loop.stop())
