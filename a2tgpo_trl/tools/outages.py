"""what keeps calls from being made -> waiting, for `patience`, and then a reason why the run should stop.

A tool that is down is asked by its `check` until it is up again. Calls that do not come back hold threads; where they
are too many (`hung.py`), further calls of their tools wait until some have come back.
"""

import asyncio
import logging
from collections.abc import Coroutine, Hashable
from typing import Any

from .attempts import Attempts, CallOrder
from .calls import Limits, ToolCall
from .hung import HungCalls
from .settings import ToolSettings


logger = logging.getLogger(__name__)

LONGEST_WAIT = 30.0  # seconds between two attempts, or two looks at a tool that is down


class SingleFlight:
    """Tasks by key, one at a time of each: who asks while it runs waits for its result."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._running

    def start(self, key: Hashable, work: Coroutine[Any, Any, Any]) -> None:
        task = self._running[key] = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._running.pop(key))

    async def wait(self, key: Hashable) -> Any:
        """Its result. Who waits for it may be cancelled; the task goes on for the others."""
        return await asyncio.shield(self._running[key])


class Outages:
    """Whether tools can be called, as far as is known. Used from one event loop."""

    def __init__(self, limits: Limits, hung: HungCalls, attempts: Attempts):
        self.limits, self._hung, self._attempts = limits, hung, attempts
        self.trouble: str | None = None  # why the run should stop, or None
        self._recoveries, self._rooms = SingleFlight(), SingleFlight()
        self._down: set[str] = set()  # in this batch
        self._last_seen_down: set[str] = set()  # in any batch; that they are up again has not been noticed yet

    def begin_batch(self) -> None:
        """Tools that were down, where the run goes on without them, may be up again."""
        self.trouble = None
        self._down.clear()

    def ask_to_stop(self, why: str) -> None:
        """Leave the first reason for whoever runs the rollouts."""
        self.trouble = self.trouble or why

    def given_up(self, name: str) -> bool:
        """Whether the tool was waited for in this batch, and stayed down."""
        return name in self._down

    # ---- tools that are down

    async def ask(self, name: str, settings: ToolSettings) -> str | None:
        """What is wrong with what the tool needs; None if nothing is, or it cannot tell."""
        if settings.check is None:
            return None
        check = ToolCall(settings.check, {}, label=f"the check of {name}")
        self._hung.never_count(check.name)  # it is asked a few times an outage
        found = await self._attempts.make(check, ToolSettings(timeout=settings.timeout), CallOrder())
        if found is None:
            return f"its check did not answer within {settings.timeout:g} seconds"
        return None if found.error is None else found.text.removeprefix("Error: ")

    async def is_up_again(self, name: str, settings: ToolSettings) -> bool:
        """Wait for a tool, if it is down. False also where it never was; calls that failed meanwhile wait together."""
        if name not in self._recoveries:
            self._recoveries.start(name, self._wait_for(name, settings))
        return await self._recoveries.wait(name)

    async def _wait_for(self, name: str, settings: ToolSettings) -> bool:
        patience = self.limits.patience
        error = await self.ask(name, settings)
        if error is None and name not in self._last_seen_down:
            return False  # it is up, and calls fail all the same
        if error is not None:
            logger.warning(f"The tool {name} is down. It is asked again for {patience:g} seconds.")
        loop = asyncio.get_running_loop()
        end, wait = loop.time() + patience, max(settings.backoff, 0.05)
        while error is not None and (left := end - loop.time()) > 0:
            await asyncio.sleep(min(wait, LONGEST_WAIT, left))
            wait *= 2
            error = await self.ask(name, settings)
        if error is None:
            self._last_seen_down.discard(name)
            self._hung.excuse(name)
            return True
        self._down.add(name)
        self._last_seen_down.add(name)
        why = f"The tool {name} is down, and was not up again within {patience:g} s: {error}"
        if self.limits.stop_when_down:
            self.ask_to_stop(why)
        else:
            logger.warning(f"{why} Training goes on without it, and asks again with the next batch.")
        return False

    # ---- calls that do not come back

    async def may_call(self, name: str, settings: ToolSettings) -> bool:
        """Whether the tool may be called. Where too many calls are out, those that want to call it wait together; for
        a tool that stays down, once a batch."""
        if not self._hung.is_blocked(name):
            return True
        if settings.check is not None and not self.given_up(name):
            await self.is_up_again(name, settings)  # if so, the calls that were lost are excused
        if self.given_up(name):
            return False
        self.watch_hung()
        return self.trouble is None and (name not in self._rooms or await self._rooms.wait(name))

    def watch_hung(self) -> None:
        """The time runs from when there are too many, whether or not another call wants to be made."""
        for name in self._hung.blocked_tools() - self._down:
            if name not in self._rooms:
                self._rooms.start(name, self._make_room(name))

    async def _make_room(self, name: str) -> bool:
        hung, patience = self._hung, self.limits.patience
        logger.warning(f"{hung}. Further calls of {name} wait for them, {patience:g} seconds at most.")
        has_room = await hung.make_room(name, patience)
        if not has_room and name in self._recoveries:
            await self._recoveries.wait(name)
            has_room = not hung.is_blocked(name)
        if not has_room and name not in self._last_seen_down:  # what is to be done then, is said already
            self.ask_to_stop(
                f"{hung}. More than max_hung_calls={self.limits.hung} threads are held by them, and were not free "
                f"again within {patience:g} s. Give the tool limits of its own (of its sockets, say), or processes "
                "that can be killed (process=True)."
            )
        return has_room
