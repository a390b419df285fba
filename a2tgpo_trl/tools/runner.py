"""the calls of a turn -> all at once, each with its limits -> their outcomes, in the order of the calls.

    submit([Request, ...]) -> future of [Outcome, ...]

A coordinating event loop, in a thread of its own, decides who runs when: sync tools in worker threads (or processes),
async tools on a second event loop, since a tool may block the one it runs on. It waits for none of them longer than
their limit: what does not answer is abandoned and counted, and past a limit the run is asked to stop (`trouble`).
"""

import asyncio
import inspect
import logging
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from ..failures import Status
from .cache import CallCache, ReplayMiss, call_key
from .process import ProcessWorker, import_words, is_one_of
from .results import Redaction, describe
from .settings import ToolSettings, with_words
from .workers import CALL, Answer, LoopThread, Worker, Workers, answer, answer_async


logger = logging.getLogger(__name__)

LONGEST_WAIT = 30.0  # seconds between two attempts, or two looks at a tool that is down
ENDING = 1.0  # seconds that a cancelled async call, or a killed process, gets to end
STARTING = 120.0  # seconds that the process of a tool may take to start: it may import much
MOST_KEPT = 16384  # results of tools with cache=True; beyond that, the oldest are asked for anew
STILL_BUSY = "Error: an earlier call on this environment has not come back."


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


@dataclass(frozen=True)
class Outcome:
    """What a call came to. `text` is what the policy reads."""

    status: Status
    text: str
    seconds: float = 0.0
    attempts: int = 0  # 0: the result was there already


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
    # Calls that may be out at once without having come back in time.
    hung: int = 16
    # Seconds that a tool which is down is waited for, and whether the run is to stop if it stays down.
    patience: float = 300.0
    stop_when_down: bool = True


class ToolRunner:
    """Makes calls. Lives as long as its trainer. Its threads are daemons: one a call at once, one an environment."""

    def __init__(
        self,
        limits: Limits | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        cache: CallCache | None = None,
    ):
        self.limits = limits or Limits()
        self._words, self.cache = settings or {}, cache
        self._redact = Redaction()
        self._coordinator = LoopThread("a2tgpo-tool-calls")
        self._async_tools: LoopThread | None = None
        self._workers = Workers()
        self._processes: set[ProcessWorker] = set()
        self._idle_processes: dict[str, list[ProcessWorker]] = {}
        self._slots = asyncio.Semaphore(self.limits.concurrency)
        self._slots_of_tool: dict[str, asyncio.Semaphore] = {}
        # By id of an environment, as long as that lives: some cannot be hashed.
        self._lanes: dict[int, tuple[weakref.ref, Lane]] = {}
        self._answers: dict[str, asyncio.Task[Outcome]] = {}  # of tools whose calls are made once
        self._recoveries: dict[str, asyncio.Task[bool]] = {}
        self._down: dict[str, str] = {}
        self._hung: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.abandoned = 0  # calls so far that did not come back in time
        # Why the run should stop, or None.
        self.trouble: str | None = None

    # ---- what the rollouts use

    def submit(self, requests: Iterable[Request]) -> "Future[list[Outcome]]":
        """Make these calls at once; those on one environment one after the other."""
        return self._coordinator.submit(self._make_all(list(requests)))

    def run(self, requests: Iterable[Request]) -> list[Outcome]:
        """Make these calls and wait for them."""
        return self.submit(requests).result()

    def settings(self, function: Callable) -> ToolSettings:
        """How calls of this tool are made: by its decorator, then the recipe."""
        return with_words(function, self._words.get(function.__name__))

    def prepare(self, functions: Iterable[Callable]) -> None:
        """What is wrong with the settings of these tools is said now, not at their first call."""
        for function in functions:
            settings = self.settings(function)
            if settings.process:
                import_words(function)
                if inspect.iscoroutinefunction(function):
                    raise ValueError(f"A tool with process=True must not be async, and {function.__name__} is.")

    def check(self, functions: Iterable[Callable]) -> None:
        """Ask each tool that can tell whether it is up. Raises a RuntimeError that names those that are not."""
        functions = list(functions)
        errors = self._coordinator.submit(self._ask_all(functions)).result()
        down = [f"{function.__name__}: {error}" for function, error in zip(functions, errors, strict=True) if error]
        if down:
            raise RuntimeError(
                f"Before the first step, these tools are not there. {'; '.join(down)}. Start them first."
            )

    def is_stuck(self, owner: Any) -> bool:
        """Whether a call on this environment has not come back, so that it cannot be used any more."""
        _, lane = self._lanes.get(id(owner), (None, None))
        return lane is not None and lane.stuck

    def forget(self, owner: Any) -> None:
        """An environment is not used any more: its thread ends as soon as it can."""
        self._close_lane(id(owner))

    def _close_lane(self, key: int) -> None:
        _, lane = self._lanes.pop(key, (None, None))
        if lane is not None and lane.worker is not None:
            lane.worker.stop()

    @property
    def hung(self) -> int:
        """Calls that are out and have not come back in time."""
        with self._lock:
            return self._hung.total()

    def look_again(self) -> None:
        """Before a batch: tools that were down, where the run goes on without them, may be up again."""
        self.trouble = None
        self._down.clear()

    def close(self) -> None:
        """End all threads and processes. Calls that are out are cancelled; a thread ends when its call comes back."""
        for loop in filter(None, (self._coordinator, self._async_tools)):
            loop.stop()
        for key in list(self._lanes):
            self._close_lane(key)
        self._workers.stop()
        for process in self._processes:
            process.close()

    # ---- one call, in the coordinating loop

    async def _make_all(self, requests: list[Request]) -> list[Outcome]:
        # Tasks start in this order, and locks are fair: calls on one environment stay in the order of the calls.
        return list(await asyncio.gather(*(self._make(request) for request in requests)))

    async def _make(self, request: Request) -> Outcome:
        settings = request.settings or self.settings(request.function)
        if request.owner is not None:
            return await self._on_environment(request, settings)
        if not settings.cache and self.cache is None:
            return await self._persist(request, settings)
        try:
            return await self._once(request, settings)
        except ReplayMiss as miss:
            self._ask_to_stop(str(miss))
            return Outcome("tool_error", describe(miss))

    async def _once(self, request: Request, settings: ToolSettings) -> Outcome:
        """Equal calls are one: the second waits for the first. A failure is not kept."""
        kept = self.cache.get(request.name, request.arguments) if self.cache is not None else None
        if kept is not None:
            return Outcome(kept.status, kept.text)
        key = call_key(request.name, request.arguments)
        first = key not in self._answers
        if first:
            if len(self._answers) >= MOST_KEPT:
                self._answers.pop(next(iter(self._answers)))
            self._answers[key] = asyncio.ensure_future(self._make_and_keep(key, request, settings))
        outcome = await asyncio.shield(self._answers[key])
        return outcome if first else Outcome(outcome.status, outcome.text)

    async def _make_and_keep(self, key: str, request: Request, settings: ToolSettings) -> Outcome:
        keep = False
        try:
            outcome = await self._persist(request, settings)
            if self.cache is not None:
                self.cache.put(request.name, request.arguments, outcome.status, outcome.text)
            keep = outcome.status == "ok" and self.cache is None
        finally:
            if not keep:
                self._answers.pop(key, None)
        return outcome

    async def _on_environment(self, request: Request, settings: ToolSettings) -> Outcome:
        lane = self._lane(request.owner)
        async with lane.lock:
            if lane.stuck:
                return Outcome("timeout", STILL_BUSY)
            return await self._persist(request, settings, lane)

    def _lane(self, owner: Any) -> Lane:
        key = id(owner)
        if key not in self._lanes:
            self._lanes[key] = (weakref.ref(owner, lambda _: self._close_lane(key)), Lane())
        return self._lanes[key][1]

    async def _persist(self, request: Request, settings: ToolSettings, lane: Lane | None = None) -> Outcome:
        """Attempts, until one succeeds or there are none left; if the tool is down then, once more when it is up."""
        outcome = await self._attempts(request, settings, lane)
        if outcome.status == "ok" or settings.check is None or (lane is not None and lane.stuck):
            return outcome
        if request.name in self._down or not await self._was_down_and_is_up(request.function):
            return outcome
        return await self._attempts(request, settings, lane, outcome.attempts)

    async def _attempts(self, request: Request, settings: ToolSettings, lane: Lane | None, made: int = 0) -> Outcome:
        longest = max(settings.backoff, LONGEST_WAIT)
        for number in range(settings.retries + 1):
            if number:
                wait = min(settings.backoff * 2 ** min(number - 1, 16), longest)
                await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            found = await self._attempt(request, settings, lane)
            outcome = self._outcome(request, found, settings, made + number + 1)
            again = outcome.status == "timeout" or (found is not None and is_one_of(found.error, settings.retry_on))
            if not again or (lane is not None and lane.stuck):
                break
        return outcome

    def _outcome(self, request: Request, found: Answer | None, settings: ToolSettings, attempts: int) -> Outcome:
        limit = self._timeout(settings)
        if limit is not None and (found is None or found.seconds > limit):  # late is late, whoever noticed it first
            text = f"Error: {request.name} did not answer within {limit:g} seconds."
            return Outcome("timeout", text, found.seconds if found else limit, attempts)
        assert found is not None, "without a limit, it was waited for"
        return Outcome("ok" if found.error is None else "tool_error", found.text, found.seconds, attempts)

    # ---- one attempt

    async def _attempt(self, request: Request, settings: ToolSettings, lane: Lane | None) -> Answer | None:
        """What the tool answered; None if it did not within its time."""
        async with AsyncExitStack() as slots:
            if settings.concurrency is not None:
                fresh = asyncio.Semaphore(settings.concurrency)
                await slots.enter_async_context(self._slots_of_tool.setdefault(request.name, fresh))
            await slots.enter_async_context(self._slots)
            if inspect.iscoroutinefunction(request.function):
                return await self._in_loop(request, settings, lane)
            if settings.process:
                return await self._in_process(request, settings)
            return await self._in_thread(request, settings, lane)

    async def _in_thread(self, request: Request, settings: ToolSettings, lane: Lane | None) -> Answer | None:
        if lane is None:
            worker = self._workers.take()
        else:
            worker = lane.worker = lane.worker or Worker("a2tgpo-environment")
        future = self._begin(worker, lambda: request.function(**request.arguments))
        found = await _in_time(future, self._timeout(settings))
        if lane is None and found is not None:
            self._workers.give_back(worker)
        elif found is None:
            self._abandon(request.name, future)
            self._workers.give_up(worker)
            if lane is not None:
                lane.worker, lane.stuck = None, True
        return found

    def _begin(self, worker: Worker, call: Callable[[], Any]) -> "Future[Answer]":
        return worker.submit(lambda: answer(call, self._redact))

    async def _in_process(self, request: Request, settings: ToolSettings) -> Answer | None:
        process, worker = self._take_process(request), self._workers.take()
        found = None if process.alive else await self._failed_to_start(process, worker)
        if found is None:
            future = self._begin(worker, lambda: process.call(request.arguments))
            found = await _in_time(future, self._timeout(settings))
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
        found = await _in_time(future, self._timeout(settings))
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

    def _timeout(self, settings: ToolSettings) -> float | None:
        return self.limits.timeout if settings.timeout is None else settings.timeout

    # ---- what does not come back

    def _abandon(self, name: str, future: "Future[Any]") -> None:
        self.abandoned += 1
        with self._lock:
            self._hung[name] += 1
            number = self._hung.total()
        future.add_done_callback(lambda _: self._came_back(name))
        if number > self.limits.hung:
            named = ", ".join(f"{tool} ({count})" for tool, count in self._hung.most_common() if count)
            self._ask_to_stop(
                f"{number} calls have not come back: {named}. More than max_hung_calls={self.limits.hung} threads are "
                "held by them. Give the tool limits of its own (of its sockets, say), or processes that can be killed "
                "(process=True)."
            )

    def _came_back(self, name: str) -> None:
        with self._lock:
            self._hung[name] -= 1

    def _ask_to_stop(self, why: str) -> None:
        self.trouble = self.trouble or why

    # ---- what is down

    async def _ask_all(self, functions: list[Callable]) -> list[str | None]:
        return list(await asyncio.gather(*map(self._ask, functions)))

    async def _ask(self, function: Callable) -> str | None:
        """What is wrong with what the tool needs; None if nothing is, or it cannot tell."""
        settings = self.settings(function)
        if settings.check is None:
            return None
        check = Request(settings.check, {}, label=f"the check of {function.__name__}")
        found = await self._in_thread(check, settings, None)
        if found is None:
            return f"its check did not answer within {self._timeout(settings):g} seconds"
        return None if found.error is None else found.text.removeprefix("Error: ")

    async def _was_down_and_is_up(self, function: Callable) -> bool:
        """Wait for a tool, if it is down; calls that failed meanwhile wait together."""
        name = function.__name__
        if name not in self._recoveries:
            task = self._recoveries[name] = asyncio.ensure_future(self._wait_for(function))
            task.add_done_callback(lambda _: self._recoveries.pop(name))
        return await asyncio.shield(self._recoveries[name])

    async def _wait_for(self, function: Callable) -> bool:
        name, patience = function.__name__, self.limits.patience
        error = await self._ask(function)
        if error is None:
            return False  # it is up, and calls fail all the same
        logger.warning(f"The tool {name} is down. It is asked again for {patience:g} seconds.")
        loop = asyncio.get_running_loop()
        end, wait = loop.time() + patience, max(self.settings(function).backoff, 0.05)
        while error is not None and (left := end - loop.time()) > 0:
            await asyncio.sleep(min(wait, LONGEST_WAIT, left))
            wait *= 2
            error = await self._ask(function)
        if error is None:
            return True
        self._down[name] = error
        why = f"The tool {name} is down, and was not up again within {patience:g} s: {error}"
        if self.limits.stop_when_down:
            self._ask_to_stop(why)
        else:
            logger.warning(f"{why} Training goes on without it, and asks again with the next batch.")
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
