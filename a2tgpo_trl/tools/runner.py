"""the calls of a turn -> all at once, each with its limits -> their outcomes, in the order of the calls.

    submit([ToolCall, ...]) -> future of [Outcome, ...]

A coordinating event loop, in a thread of its own, decides who runs when: sync tools in worker threads (or processes),
async tools on a second event loop (`attempts.py`). A tool that is down is waited for, and so are calls that do not
come back, where there are too many of them (`outages.py`); after `patience`, the run is asked to stop (`trouble`).
"""

import asyncio
import inspect
import random
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from .attempts import Attempts, CallOrder
from .cache import CallCache, ReplayMiss, call_key
from .calls import CallStatus, Limits, Outcome, ToolCall
from .hung import HungCalls
from .outages import LONGEST_WAIT, Outages, SingleFlight
from .process import import_path
from .results import ToolDown, describe, is_one_of
from .settings import ToolSettings, identity, with_recipe
from .workers import Attempt, LoopThread


MOST_KEPT = 16384  # results of tools with cache=True; beyond that, the oldest are asked for anew
STILL_BUSY = "Error: an earlier call on this environment has not come back."


class NotCalled(TimeoutError):
    """A call was given up before it reached its tool."""


class ToolRunner:
    """Makes calls. Lives as long as its trainer. Its threads are daemons: one a call at once, one an environment."""

    def __init__(
        self,
        limits: Limits | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        cache: CallCache | None = None,
    ):
        """`settings`: those of a recipe, by name of the tool. `cache`: calls that are kept in a file."""
        self.limits, self.cache = limits or Limits(), cache
        self._recipe = settings or {}
        self._coordinator = LoopThread("a2tgpo-tool-calls")
        self._hung = HungCalls(self.limits.hung)
        self._attempts = Attempts(self.limits.concurrency, self._hung)
        self._outages = Outages(self.limits, self._hung, self._attempts)
        self._jitter = random.Random()  # of its own: retries must not change what training draws
        self._results: dict[str, Outcome] = {}  # of tools whose calls are made once
        self._equal_calls = SingleFlight()
        # A trainer that nobody holds any more leaves no threads behind.
        self.close = weakref.finalize(self, _close, self._coordinator, self._attempts)

    # ---- what the rollouts use

    def submit(self, calls: Iterable[ToolCall]) -> "Future[list[Outcome]]":
        """Make these calls at once; those on one environment one after the other."""
        return self._coordinator.submit(self._make_all(list(calls)))

    def run(self, calls: Iterable[ToolCall]) -> list[Outcome]:
        """Make these calls and wait for them."""
        return self.submit(calls).result()

    def settings(self, function: Callable) -> ToolSettings:
        """How calls of this tool are made: by its decorator, then the recipe."""
        return with_recipe(function, self._recipe.get(function.__name__))

    def prepare(self, functions: Iterable[Callable]) -> None:
        """What is wrong with the settings of these tools is said now, not at their first call."""
        for function in functions:
            settings = self.settings(function)
            if settings.process:
                import_path(function)
                if inspect.iscoroutinefunction(function):
                    raise ValueError(f"A tool with process=True must not be async, and {function.__name__} is.")
            if settings.changes_state:
                self._refuse_kept(function.__name__, settings)
            self._refuse_idle(function.__name__, settings, getattr(function, "__self__", None))

    def _refuse_kept(self, name: str, settings: ToolSettings) -> None:
        """Of a tool that changes something, no result may stand for a call."""
        if settings.cache:
            raise ValueError(f"{name} has cache and changes_state: a second call would change nothing. Leave one out.")
        if self.cache is not None and self.cache.replay:
            raise ValueError(
                f"tool_replay cannot answer for {name}, which changes_state: a replayed call would change nothing. "
                "Replay tools that look things up."
            )

    def _refuse_idle(self, name: str, settings: ToolSettings, owner: Any) -> None:
        """Settings that have no effect, since the tool is an environment's method, or is none."""
        if self._attempts.is_environment(owner):
            if settings.cache:
                raise ValueError(
                    f"cache has no effect on {name}, a method of an environment: what it returns may depend on what "
                    "was called before, so that each call is made. Leave it out."
                )
            return
        for setting in ("cancel", "release"):
            if getattr(settings, setting) is not None:
                raise ValueError(
                    f"{setting} has no effect on {name}, which is no method of an environment: it is called with one. "
                    "Leave it out, or make the tool a method of an environment."
                )

    def check(self, functions: Iterable[Callable]) -> None:
        """Ask each tool that can tell whether it is up. Raises a RuntimeError that names those that are not."""
        functions = list(functions)
        errors = self._coordinator.submit(self._ask_all(functions)).result()
        down = [f"{function.__name__}: {error}" for function, error in zip(functions, errors, strict=True) if error]
        if down:
            raise RuntimeError(
                f"Before the first step, these tools are not there. {'; '.join(down)}. Start them first."
            )

    def begin_batch(self) -> None:
        """Tools that were down, where the run goes on without them, may be up again."""
        self._outages.begin_batch()

    @property
    def trouble(self) -> str | None:
        """Why the run should stop, or None."""
        return self._outages.trouble

    @property
    def hung(self) -> int:
        """Calls that are out and have not come back in time."""
        return len(self._hung)

    @property
    def abandoned(self) -> int:
        """Calls so far that did not come back in time."""
        return self._attempts.abandoned

    def construct(self, factory: Callable[[], Any]) -> Any:
        """An environment, made on the thread that will make its calls. Raises what the factory raises."""
        return self._attempts.construct(factory)

    def adopt(self, place: Any, environment: Any) -> None:
        """What was made by a call on `place`, and is an environment: its calls are made on the thread of that one."""
        self._attempts.adopt(place, environment)

    def is_stuck(self, environment: Any) -> bool:
        """Whether a call on this environment has not come back, so that it cannot be used any more."""
        return self._attempts.is_stuck(environment)

    def forget(self, environment: Any) -> None:
        """An environment is not used any more: its thread ends as soon as it can."""
        self._attempts.forget(environment)

    # ---- one call, in the coordinating loop

    async def _ask_all(self, functions: list[Callable]) -> list[str | None]:
        asked = (self._outages.ask(one.__name__, self._with_timeout(self.settings(one))) for one in functions)
        return list(await asyncio.gather(*asked))

    async def _make_all(self, calls: list[ToolCall]) -> list[Outcome]:
        # Tasks start in this order, and locks are fair: calls on one environment stay in the order of the calls.
        return list(await asyncio.gather(*map(self._make, calls)))

    def _with_timeout(self, settings: ToolSettings) -> ToolSettings:
        return settings if settings.timeout is not None else replace(settings, timeout=self.limits.timeout)

    async def _make(self, call: ToolCall) -> Outcome:
        settings = self._with_timeout(call.settings or self.settings(call.function))
        is_kept = settings.cache or (self.cache is not None and not settings.changes_state)
        if call.environment is None and is_kept:
            return await self._once(call, settings)
        order = self._attempts.order_of(call.environment)
        async with order.lock:
            if order.stuck:
                return Outcome("timeout", STILL_BUSY, made=False)
            return await self._persist(call, settings, order)

    async def _once(self, call: ToolCall, settings: ToolSettings) -> Outcome:
        """Equal calls are one: the second waits for the first. A failure is not kept."""
        key = call_key(call.name, call.arguments)
        try:
            of = "" if self.cache is None else identity(call.function, settings)
            kept = self._results.get(key) if self.cache is None else self.cache.get(call.name, call.arguments, of)
        except ReplayMiss as miss:
            self._outages.ask_to_stop(str(miss))
            return Outcome("tool_error", describe(miss), made=False)
        if kept is not None:
            return kept
        is_first = key not in self._equal_calls
        if is_first:
            self._equal_calls.start(key, self._make_and_keep(key, of, call, settings))
        outcome = await self._equal_calls.wait(key)
        return outcome if is_first else Outcome(outcome.status, outcome.text, made=outcome.made)

    async def _make_and_keep(self, key: str, of: str, call: ToolCall, settings: ToolSettings) -> Outcome:
        outcome = await self._persist(call, settings, CallOrder())
        if self.cache is not None:
            self.cache.put(call.name, call.arguments, outcome.status, outcome.text, of)
        elif outcome.status == "ok":
            if len(self._results) >= MOST_KEPT:
                self._results.pop(next(iter(self._results)))
            self._results[key] = Outcome(outcome.status, outcome.text)
        return outcome

    async def _persist(self, call: ToolCall, settings: ToolSettings, order: CallOrder) -> Outcome:
        """Attempts, until one succeeds or there are none left; if the tool is down then, once more when it is up.

        If it is down again then, since other calls took the place that had come free, it is waited for again.
        """
        outcome, outages = await self._repeat(call, settings, order), self._outages
        while not (outcome.status == "ok" or settings.check is None or order.stuck or outages.given_up(call.name)):
            is_up_again = await outages.is_up_again(call.name, settings)
            if not is_up_again and (not outcome.down or outages.given_up(call.name)):
                break
            outcome = await self._repeat(call, settings, order, outcome.attempts)
            if not (is_up_again and outcome.down):
                break
        return outcome

    async def _repeat(self, call: ToolCall, settings: ToolSettings, order: CallOrder, made: int = 0) -> Outcome:
        longest = max(settings.backoff, LONGEST_WAIT)
        for number in range(settings.retries + 1):
            if number:
                wait = min(settings.backoff * 2 ** min(number - 1, 16), longest)
                await asyncio.sleep(wait * self._jitter.uniform(0.5, 1.5))
            attempt = await self._attempt(call, settings, order)
            outcome = _outcome(call, attempt, settings.timeout, made + number + 1)
            failed = attempt is not None and is_one_of(attempt.error, settings.retry_on)
            if not (failed or outcome.status == "timeout") or self.trouble is not None or order.stuck:
                break
            if self._outages.given_up(call.name):
                break  # it was waited for already, and training goes on without it
        return outcome

    async def _attempt(self, call: ToolCall, settings: ToolSettings, order: CallOrder) -> Attempt | None:
        while await self._outages.may_call(call.name, settings):
            async with self._attempts.place(call, settings):
                if self._hung.is_blocked(call.name):
                    continue  # so it became while this call waited for its place
                attempt = await self._attempts.make(call, settings, order)
                self._outages.watch_hung()
                return attempt
        return Attempt(f"Error: {call.name} was not called: earlier calls have not come back.", NotCalled(), 0.0)


def _outcome(call: ToolCall, attempt: Attempt | None, limit: float | None, attempts: int) -> Outcome:
    if limit is not None and (attempt is None or attempt.seconds > limit):  # late is late, whoever noticed it first
        text = f"Error: {call.name} did not answer within {limit:g} seconds."
        return Outcome("timeout", text, attempt.seconds if attempt else limit, attempts)
    assert attempt is not None, "without a limit, it was waited for"
    status: CallStatus = "ok" if attempt.error is None else "tool_error"
    made = attempts > 1 or not isinstance(attempt.error, NotCalled)
    return Outcome(status, attempt.text, attempt.seconds, attempts, is_one_of(attempt.error, (ToolDown,)), made)


def _close(coordinator: LoopThread, attempts: Attempts) -> None:
    """End all threads and processes. Calls that are out are cancelled; a thread ends when its call comes back."""
    coordinator.stop()
    attempts.close()
