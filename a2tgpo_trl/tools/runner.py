"""the calls of a turn -> all at once, each with its limits -> their outcomes, in the order of the calls.

    submit([Request, ...]) -> future of [Outcome, ...]

A coordinating event loop, in a thread of its own, decides who runs when: sync tools in worker threads (or processes),
async tools on a second event loop (`attempts.py`). A tool that is down is waited for, and so are calls that do not
come back, where there are too many of them (`hung.py`); after `patience`, the run is asked to stop (`trouble`).
"""

import asyncio
import inspect
import logging
import random
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..rollout.failures import Status
from .attempts import Answer, Attempts, Lane, Limits, Request
from .cache import CallCache, ReplayMiss, call_key
from .process import import_words, is_one_of
from .results import ToolDown, describe
from .settings import ToolSettings, with_words
from .workers import LoopThread


logger = logging.getLogger(__name__)

LONGEST_WAIT = 30.0  # seconds between two attempts, or two looks at a tool that is down
MOST_KEPT = 16384  # results of tools with cache=True; beyond that, the oldest are asked for anew
STILL_BUSY = "Error: an earlier call on this environment has not come back."


@dataclass(frozen=True)
class Outcome:
    """What a call came to. `text` is what the policy reads."""

    status: Status
    text: str
    seconds: float = 0.0
    attempts: int = 0  # 0: the result was there already
    down: bool = False  # the tool says that it is no fault of the call


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
        self._coordinator = LoopThread("a2tgpo-tool-calls")
        self._attempts = Attempts(self.limits)
        self._jitter = random.Random()  # of its own: retries must not change what training draws
        self._answers: dict[str, asyncio.Task[Outcome]] = {}  # of tools whose calls are made once
        self._recoveries: dict[str, asyncio.Task[bool]] = {}
        self._rooms: dict[str, asyncio.Task[bool]] = {}
        self._down: set[str] = set()  # in this batch
        self._last_seen_down: set[str] = set()  # in any batch; that they are up again has not been noticed yet
        # A trainer that nobody holds any more leaves no threads behind.
        self.close = weakref.finalize(self, _close, self._coordinator, self._attempts)

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

    def construct(self, factory: Callable[[], Any]) -> Any:
        """An environment, made on the thread that will make its calls. Raises what the factory raises."""
        return self._attempts.construct(factory)

    def is_stuck(self, owner: Any) -> bool:
        """Whether a call on this environment has not come back, so that it cannot be used any more."""
        return self._attempts.is_stuck(owner)

    def forget(self, owner: Any) -> None:
        """An environment is not used any more: its thread ends as soon as it can."""
        self._attempts.forget(owner)

    @property
    def hung(self) -> int:
        """Calls that are out and have not come back in time."""
        return len(self._attempts.hung)

    @property
    def trouble(self) -> str | None:
        """Why the run should stop, or None."""
        return self._attempts.trouble

    @property
    def abandoned(self) -> int:
        """Calls so far that did not come back in time."""
        return self._attempts.abandoned

    def look_again(self) -> None:
        """Before a batch: tools that were down, where the run goes on without them, may be up again."""
        self._attempts.trouble = None
        self._down.clear()

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
            self._attempts.ask_to_stop(str(miss))
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
        lane = self._attempts.lane(request.owner)
        async with lane.lock:
            if lane.stuck:
                return Outcome("timeout", STILL_BUSY)
            return await self._persist(request, settings, lane)

    async def _persist(self, request: Request, settings: ToolSettings, lane: Lane | None = None) -> Outcome:
        """Attempts, until one succeeds or there are none left; if the tool is down then, once more when it is up."""
        outcome = await self._repeat(request, settings, lane)
        if outcome.status == "ok" or settings.check is None or (lane is not None and lane.stuck):
            return outcome
        if request.name in self._down:
            return outcome
        is_up_again = await self._was_down_and_is_up(request.name, settings)
        if not is_up_again and (not outcome.down or request.name in self._down):
            return outcome
        return await self._repeat(request, settings, lane, outcome.attempts)

    async def _repeat(self, request: Request, settings: ToolSettings, lane: Lane | None, made: int = 0) -> Outcome:
        longest = max(settings.backoff, LONGEST_WAIT)
        for number in range(settings.retries + 1):
            if number:
                wait = min(settings.backoff * 2 ** min(number - 1, 16), longest)
                await asyncio.sleep(wait * self._jitter.uniform(0.5, 1.5))
            found = await self._attempt(request, settings, lane)
            outcome = self._outcome(request, found, settings, made + number + 1)
            again = outcome.status == "timeout" or (found is not None and is_one_of(found.error, settings.retry_on))
            if not again or self.trouble is not None or (lane is not None and lane.stuck):
                break
            if request.name in self._down:
                break  # it was waited for already, and training goes on without it
        return outcome

    async def _attempt(self, request: Request, settings: ToolSettings, lane: Lane | None) -> Answer | None:
        while await self._has_room(request.name, settings):
            async with self._attempts.place(request, settings):
                if self._attempts.hung.crowd(request.name):
                    continue  # so it became while this call waited for its place
                found = await self._attempts.make(request, settings, lane)
                self._watch_hung()
                return found
        return Answer(f"Error: {request.name} was not called: earlier calls have not come back.", TimeoutError(), 0.0)

    def _outcome(self, request: Request, found: Answer | None, settings: ToolSettings, attempts: int) -> Outcome:
        limit = self._attempts.timeout(settings)
        if limit is not None and (found is None or found.seconds > limit):  # late is late, whoever noticed it first
            text = f"Error: {request.name} did not answer within {limit:g} seconds."
            return Outcome("timeout", text, found.seconds if found else limit, attempts)
        assert found is not None, "without a limit, it was waited for"
        status: Status = "ok" if found.error is None else "tool_error"
        return Outcome(status, found.text, found.seconds, attempts, is_one_of(found.error, (ToolDown,)))

    # ---- calls that do not come back

    async def _has_room(self, name: str, settings: ToolSettings) -> bool:
        """Whether the tool may be called. Where too many calls are out, those that want to call it wait together; for
        a tool that stays down, once a batch."""
        if not self._attempts.hung.crowd(name):
            return True
        if settings.check is not None and name not in self._down:
            await self._was_down_and_is_up(name, settings)  # if so, the calls that were lost are excused
        if name in self._down:
            return False
        self._watch_hung()
        return self.trouble is None and (name not in self._rooms or await asyncio.shield(self._rooms[name]))

    def _watch_hung(self) -> None:
        """The time runs from when there are too many, whether or not another call wants to be made."""
        for name in self._attempts.hung.crowding() - self._down:
            if name not in self._rooms:
                self._rooms[name] = asyncio.ensure_future(self._make_room(name))
                self._rooms[name].add_done_callback(partial(self._rooms.pop, name))

    async def _make_room(self, name: str) -> bool:
        hung, patience = self._attempts.hung, self.limits.patience
        logger.warning(f"{hung}. Further calls of {name} wait for them, {patience:g} seconds at most.")
        has_room = await hung.make_room(name, patience)
        if not has_room and name in self._recoveries:
            await asyncio.shield(self._recoveries[name])
            has_room = not hung.crowd(name)
        if not has_room and name not in self._last_seen_down:  # what is to be done then, is said already
            self._attempts.ask_to_stop(
                f"{hung}. More than max_hung_calls={self.limits.hung} threads are held by them, and were not free "
                f"again within {patience:g} s. Give the tool limits of its own (of its sockets, say), or processes "
                "that can be killed (process=True)."
            )
        return has_room

    # ---- what is down

    async def _ask_all(self, functions: list[Callable]) -> list[str | None]:
        return list(await asyncio.gather(*(self._ask(one.__name__, self.settings(one)) for one in functions)))

    async def _ask(self, name: str, settings: ToolSettings) -> str | None:
        """What is wrong with what the tool needs; None if nothing is, or it cannot tell."""
        if settings.check is None:
            return None
        check = Request(settings.check, {}, label=f"the check of {name}")
        self._attempts.hung.never_count(check.name)  # it is asked a few times an outage
        found = await self._attempts.in_thread(check, settings)
        if found is None:
            return f"its check did not answer within {self._attempts.timeout(settings):g} seconds"
        return None if found.error is None else found.text.removeprefix("Error: ")

    async def _was_down_and_is_up(self, name: str, settings: ToolSettings) -> bool:
        """Wait for a tool, if it is down; calls that failed meanwhile wait together."""
        if name not in self._recoveries:
            task = self._recoveries[name] = asyncio.ensure_future(self._wait_for(name, settings))
            task.add_done_callback(lambda _: self._recoveries.pop(name))
        return await asyncio.shield(self._recoveries[name])

    async def _wait_for(self, name: str, settings: ToolSettings) -> bool:
        patience = self.limits.patience
        error = await self._ask(name, settings)
        if error is None and name not in self._last_seen_down:
            return False  # it is up, and calls fail all the same
        if error is not None:
            logger.warning(f"The tool {name} is down. It is asked again for {patience:g} seconds.")
        loop = asyncio.get_running_loop()
        end, wait = loop.time() + patience, max(settings.backoff, 0.05)
        while error is not None and (left := end - loop.time()) > 0:
            await asyncio.sleep(min(wait, LONGEST_WAIT, left))
            wait *= 2
            error = await self._ask(name, settings)
        if error is None:
            self._last_seen_down.discard(name)
            self._attempts.hung.excuse(name)
            return True
        self._down.add(name)
        self._last_seen_down.add(name)
        why = f"The tool {name} is down, and was not up again within {patience:g} s: {error}"
        if self.limits.stop_when_down:
            self._attempts.ask_to_stop(why)
        else:
            logger.warning(f"{why} Training goes on without it, and asks again with the next batch.")
        return False


def _close(coordinator: LoopThread, attempts: Attempts) -> None:
    """End all threads and processes. Calls that are out are cancelled; a thread ends when its call comes back."""
    coordinator.stop()
    attempts.close()
