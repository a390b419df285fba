"""the calls of a turn -> all made together, each with its limits -> their outcomes, in the order of the calls.

    submit([ToolCall, ...]) -> future of [Outcome, ...]

A coordinating event loop, in a separate thread, schedules the calls: sync tools in worker threads (or processes),
async tools on a second event loop (`attempts.py`). The runner waits for a tool that is down, and for calls that do not
return if there are too many of them (`outages.py`); after `patience`, it asks the run to stop (`trouble`).
"""

import asyncio
import inspect
import logging
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


logger = logging.getLogger(__name__)

MOST_KEPT = 16384  # results of tools with cache=True; beyond that, the oldest are dropped
STILL_BUSY = "Error: an earlier call on this environment has not come back."


class NotCalled(TimeoutError):
    """A call was given up before it reached its tool."""


class ToolRunner:
    """Makes calls, for as long as its trainer lives. Each running call and each environment has a daemon thread."""

    def __init__(
        self,
        limits: Limits | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        cache: CallCache | None = None,
    ):
        """`settings`: a recipe's, by the tool's name. `cache`: calls that are kept in a file."""
        self.limits, self.cache = limits or Limits(), cache
        self._recipe = settings or {}
        self._coordinator = LoopThread("a2tgpo-tool-calls")
        self._hung = HungCalls(self.limits.hung)
        self._attempts = Attempts(self.limits.concurrency, self._hung)
        self._outages = Outages(self.limits, self._hung, self._attempts)
        self._jitter = random.Random()  # separate, so that retries do not change what training draws
        self._results: dict[str, Outcome] = {}  # of tools with cache=True
        self._equal_calls = SingleFlight()
        self._told: set[str] = set()  # tools whose own limit has no effect
        # A trainer that is garbage-collected leaves no threads behind.
        self.close = weakref.finalize(self, _close, self._coordinator, self._attempts)

    # ---- what the rollouts use

    def submit(self, calls: Iterable[ToolCall]) -> "Future[list[Outcome]]":
        """Start these calls together; those on the same environment run one after the other."""
        return self._coordinator.submit(self._make_all(list(calls)))

    def run(self, calls: Iterable[ToolCall]) -> list[Outcome]:
        """Make these calls and wait for them."""
        return self.submit(calls).result()

    def settings(self, function: Callable) -> ToolSettings:
        """How calls of this tool are made: by its decorator, then the recipe."""
        return with_recipe(function, self._recipe.get(function.__name__))

    def prepare(self, functions: Iterable[Callable]) -> None:
        """Raise an error for wrong settings of these tools now, not at their first call."""
        for function in functions:
            settings = self.settings(function)
            if settings.process:
                import_path(function)
                if inspect.iscoroutinefunction(function):
                    raise ValueError(f"A tool with process=True must not be async, and {function.__name__} is.")
            self._warn_of_idle_limit(function.__name__, settings)
            if settings.changes_state:
                self._refuse_kept(function.__name__, settings)
            self._refuse_idle(function.__name__, settings, getattr(function, "__self__", None))

    def _warn_of_idle_limit(self, name: str, settings: ToolSettings) -> None:
        limit = self._with_timeout(settings).timeout
        if settings.ends_after is None or limit is None or limit > settings.ends_after or name in self._told:
            return
        self._told.add(name)
        logger.warning(
            f"{name}: its own limit of {settings.ends_after:g} seconds has no effect, because a call is given up "
            f"after {limit:g} (tool_timeout, or timeout in tool_settings). Raise that one, or lower the tool's."
        )

    def _refuse_kept(self, name: str, settings: ToolSettings) -> None:
        """Raise an error if a kept result could replace a call of this tool, which changes something."""
        if settings.cache:
            raise ValueError(
                f"{name} has both cache and changes_state: a second call would change nothing. Leave one of them out."
            )
        if self.cache is not None and self.cache.replay:
            raise ValueError(
                f"tool_replay does not work with {name}, which has changes_state: a replayed call would change "
                "nothing. Replay only tools that look things up."
            )

    def _refuse_idle(self, name: str, settings: ToolSettings, owner: Any) -> None:
        """Raise an error for settings that have no effect because the tool is, or is not, an environment's method."""
        if self._attempts.is_environment(owner):
            if settings.cache:
                raise ValueError(
                    f"cache has no effect on {name}, a method of an environment: its result may depend on earlier "
                    "calls, so every call is made. Leave it out."
                )
            return
        for setting in ("cancel", "release"):
            if getattr(settings, setting) is not None:
                raise ValueError(
                    f"{setting} has no effect on {name}: it is called with the environment, and this tool is not a "
                    "method of one. Leave it out, or make the tool a method of an environment."
                )

    def check(self, functions: Iterable[Callable]) -> None:
        """Run the `check` of each tool that has one. Raises a RuntimeError that names the tools that are down."""
        functions = list(functions)
        errors = self._coordinator.submit(self._ask_all(functions)).result()
        down = [f"{function.__name__}: {error}" for function, error in zip(functions, errors, strict=True) if error]
        if down:
            raise RuntimeError(f"Tools are down before the first step. {'; '.join(down)}. Start them first.")

    def begin_batch(self) -> None:
        """Try tools again that were down in the batch before, if the run went on without them."""
        self._outages.begin_batch()

    @property
    def trouble(self) -> str | None:
        """Why the run should stop, or None."""
        return self._outages.trouble

    @property
    def hung(self) -> int:
        """Number of calls that are past their time limit and have not returned yet."""
        return len(self._hung)

    @property
    def abandoned(self) -> int:
        """Number of calls so far that did not return in time."""
        return self._attempts.abandoned

    def construct(self, factory: Callable[[], Any]) -> Any:
        """Make an environment on the thread that will make its calls. Raises what the factory raises."""
        return self._attempts.construct(factory)

    def adopt(self, place: Any, environment: Any) -> None:
        """Make the calls on an environment, which a call on `place` made, on the thread of `place`."""
        self._attempts.adopt(place, environment)

    def is_stuck(self, environment: Any) -> bool:
        """Whether a call on this environment has not returned, so that it can no longer be used."""
        return self._attempts.is_stuck(environment)

    def forget(self, environment: Any) -> None:
        """End the thread of an environment that is no longer used, as soon as possible."""
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
        """Make equal calls once: the second waits for the first. A failure is not kept."""
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
        """Attempt a call until it succeeds or no attempt is left; if the tool is down then, once more when it is up.

        If the tool is down again then, because other calls took the place that had come free, wait for it again.
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
                break  # the run has waited for it already, and goes on without it
        return outcome

    async def _attempt(self, call: ToolCall, settings: ToolSettings, order: CallOrder) -> Attempt | None:
        while await self._outages.may_call(call.name, settings):
            async with self._attempts.place(call, settings):
                if self._hung.is_blocked(call.name):
                    continue  # it became blocked while this call waited for its place
                attempt = await self._attempts.make(call, settings, order)
                self._outages.watch_hung()
                return attempt
        return Attempt(f"Error: {call.name} was not called: earlier calls have not come back.", NotCalled(), 0.0)


def _outcome(call: ToolCall, attempt: Attempt | None, limit: float | None, attempts: int) -> Outcome:
    if limit is not None and (attempt is None or attempt.seconds > limit):  # late, even if it returned meanwhile
        text = f"Error: {call.name} did not answer within {limit:g} seconds."
        return Outcome("timeout", text, attempt.seconds if attempt else limit, attempts)
    assert attempt is not None, "without a limit, it was waited for"
    status: CallStatus = "ok" if attempt.error is None else "tool_error"
    made = attempts > 1 or not isinstance(attempt.error, NotCalled)
    return Outcome(status, attempt.text, attempt.seconds, attempts, is_one_of(attempt.error, (ToolDown,)), made)


def _close(coordinator: LoopThread, attempts: Attempts) -> None:
    """End all threads and processes. Running calls are cancelled; a thread ends when its call returns."""
    try:
        coordinator.stop()
    finally:
        attempts.close()
