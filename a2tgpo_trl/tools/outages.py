"""what keeps calls from being made -> waiting, for `patience`, and then a reason why the run should stop.

The `check` of a tool that is down is repeated until the tool is up again. Calls that do not return hold threads; when
there are too many of them (`hung.py`), further calls of their tools wait until some have returned.
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

LONGEST_WAIT = 30.0  # seconds between two attempts, or two checks of a tool that is down


class SingleFlight:
    """Tasks by key, one at a time per key: callers that ask while it runs wait for its result."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._running

    def start(self, key: Hashable, work: Coroutine[Any, Any, Any]) -> None:
        task = self._running[key] = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._running.pop(key))

    async def wait(self, key: Hashable) -> Any:
        """The task's result. A waiting caller may be cancelled; the task goes on for the others."""
        return await asyncio.shield(self._running[key])


class Outages:
    """Which tools can be called, as far as is known. Used from one event loop."""

    def __init__(self, limits: Limits, hung: HungCalls, attempts: Attempts):
        self.limits, self._hung, self._attempts = limits, hung, attempts
        self.trouble: str | None = None  # why the run should stop, or None
        self._recoveries, self._rooms = SingleFlight(), SingleFlight()
        self._down: set[str] = set()  # in this batch
        self._last_seen_down: set[str] = set()  # in any batch, and not seen up again yet

    def begin_batch(self) -> None:
        """Try tools again that were down in the batch before, if the run went on without them."""
        self.trouble = None
        self._down.clear()

    def ask_to_stop(self, why: str) -> None:
        """Keep the first reason to stop, for the caller that runs the rollouts."""
        self.trouble = self.trouble or why

    def given_up(self, name: str) -> bool:
        """Whether the run has waited for the tool in this batch, and it stayed down."""
        return name in self._down

    # ---- tools that are down

    async def ask(self, name: str, settings: ToolSettings) -> str | None:
        """What is wrong with something the tool needs; None if nothing is, or the tool has no `check`."""
        if settings.check is None:
            return None
        check = ToolCall(settings.check, {}, label=f"the check of {name}")
        self._hung.never_count(check.name)  # it is called only a few times per outage
        found = await self._attempts.make(check, ToolSettings(timeout=settings.timeout), CallOrder())
        if found is None:
            return f"its check did not answer within {settings.timeout:g} seconds"
        return None if found.error is None else found.text.removeprefix("Error: ")

    async def is_up_again(self, name: str, settings: ToolSettings) -> bool:
        """Wait for a tool if it is down. False also if it never was; calls that failed meanwhile wait together."""
        if name not in self._recoveries:
            self._recoveries.start(name, self._wait_for(name, settings))
        return await self._recoveries.wait(name)

    async def _wait_for(self, name: str, settings: ToolSettings) -> bool:
        patience = self.limits.patience
        error = await self.ask(name, settings)
        if error is None and name not in self._last_seen_down:
            return False  # it is up, but calls fail all the same
        if error is not None:
            logger.warning(f"The tool {name} is down. Its check is repeated for {patience:g} seconds.")
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
        why = f"The tool {name} is down, and did not come back within {patience:g} s: {error}"
        if self.limits.stop_when_down:
            self.ask_to_stop(why)
        else:
            logger.warning(f"{why} Training continues without it, and tries it again with the next batch.")
        return False

    # ---- calls that do not return

    async def may_call(self, name: str, settings: ToolSettings) -> bool:
        """Whether the tool may be called. If too many calls are out, the calls that want to use it wait together; for
        a tool that stays down, once per batch."""
        if not self._hung.is_blocked(name):
            return True
        if settings.check is not None and not self.given_up(name):
            await self.is_up_again(name, settings)  # if so, the calls that were lost are excused
        if self.given_up(name):
            return False
        self.watch_hung()
        return self.trouble is None and (name not in self._rooms or await self._rooms.wait(name))

    def watch_hung(self) -> None:
        """Start the time limit as soon as too many calls are out, whether or not another call is waiting."""
        for name in self._hung.blocked_tools() - self._down:
            if name not in self._rooms:
                self._rooms.start(name, self._make_room(name))

    async def _make_room(self, name: str) -> bool:
        hung, patience = self._hung, self.limits.patience
        logger.warning(f"{hung}. Further calls to {name} wait for them, for at most {patience:g} seconds.")
        has_room = await hung.make_room(name, patience)
        if not has_room and name in self._recoveries:
            await self._recoveries.wait(name)
            has_room = not hung.is_blocked(name)
        if not has_room and name not in self._last_seen_down:  # a tool that is down was already dealt with
            self.ask_to_stop(
                f"{hung}. They hold more than max_hung_calls={self.limits.hung} threads, which were not free again "
                f"within {patience:g} s. Give the tool time limits of its own (for its sockets, for example), or "
                "processes that can be killed (process=True)."
            )
        return has_room
