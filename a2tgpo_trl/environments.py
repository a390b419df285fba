"""environments that may fail -> environments whose failure costs a rollout, and not the run.

`GRPOTrainer` resets the environments of a batch itself, one after the other, and asks them for rewards. Here both go
through the tool runner, on the environment's own thread and with its time limit; a `reset` that fails leaves its
rollout out of the batch, and one whose `get_reward` fails gets no reward at all. Both are counted.
"""

import asyncio
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from types import MethodType
from typing import TYPE_CHECKING, Any

from .checks import check_factory, checked_environment
from .tools.attempts import Request
from .tools.runner import ToolRunner
from .tools.settings import settings_of


if TYPE_CHECKING:
    from trl import GRPOTrainer

logger = logging.getLogger(__name__)


class Environments:
    """Makes the environments of a trainer, and remembers which of them failed in this batch."""

    def __init__(self, runner: ToolRunner):
        self.runner = runner
        # By id of an environment, why it failed in this batch.
        self._failed: dict[int, str] = {}
        self._no_reward: dict[int, str] = {}
        self.resets = self.rewards = 0

    def begin_batch(self) -> None:
        self._failed.clear()
        self._no_reward.clear()
        self.resets = self.rewards = 0

    def guarded(self, factory: Any) -> Any:
        """A factory, or several by name, of environments whose `reset` and `get_reward` do not raise.

        They are made on the thread that will make their calls.
        """
        check_factory(factory)
        if isinstance(factory, Mapping):
            return {name: self.guarded(one) for name, one in factory.items()}
        return lambda: self._guard(self.runner.construct(lambda: checked_environment(factory())))

    def _guard(self, environment: Any) -> Any:
        """Put watched methods in the place of two. On the instance, so that its class stays what the parent knows."""
        watched = {"reset": self._watched_reset(environment, environment.reset)}
        if callable(getattr(type(environment), "get_reward", None)):
            watched["get_reward"] = self._watched_reward(environment, environment.get_reward)
        for name, method in watched.items():
            try:
                object.__setattr__(environment, name, method)  # also where the class is a frozen one
            except AttributeError as error:
                raise TypeError(
                    f"Environments of class {type(environment).__name__} take no attributes: drop its __slots__, or "
                    f"add '__dict__' and '__weakref__' to them. {error}"
                ) from error
        return environment

    def failed(self, environment: Any) -> str | None:
        """Why the environment could not be reset for this batch; None if it could."""
        return self._failed.get(id(environment))

    def has_failed(self, environment: Any) -> bool:
        """Whether the environment could not be reset, or should have given a reward and could not."""
        return id(environment) in self._failed or id(environment) in self._no_reward

    @property
    def reward_errors(self) -> list[str]:
        return list(self._no_reward.values())

    @property
    def reset_errors(self) -> list[str]:
        return list(self._failed.values())

    def drop_stuck(self, pools: Mapping[Any, list]) -> None:
        """Take environments whose calls have not come back out of the pools; new ones are made in their place."""
        for pool in pools.values():
            stuck = [one for one in pool if self.runner.is_stuck(one)]
            pool[:] = [one for one in pool if not self.runner.is_stuck(one)]  # by identity: some compare by value
            for environment in stuck:
                self.runner.forget(environment)

    def release(self, environments: Iterable[Any]) -> None:
        """After a batch: have them give back what a rollout held, if a tool of theirs says how."""
        calls = [
            self._call(environment, MethodType(release, environment), {})
            for environment in environments
            if not self.runner.is_stuck(environment)
            for release in _releases(type(environment))
        ]
        errors = [error for _, error in [call.result() for call in calls] if error is not None]
        if errors:
            logger.warning(f"{len(errors)} environments did not give back what their rollouts held. {errors[0]}")

    def _watched_reset(self, environment: Any, reset: Callable) -> Callable:
        def watched(**row: Any) -> Any:
            self.resets += 1
            value, error = self._call(environment, reset, row).result()
            if error is not None:
                self._failed[id(environment)] = error
            return value

        return watched

    def _watched_reward(self, environment: Any, get_reward: Callable) -> Callable:
        def judged(found: tuple[Any, str | None]) -> float | None:
            value, error = found
            if error is None and value is not None and not _is_finite(value):
                value, error = None, f"get_reward returned {value!r:.80}, which is no finite number"
            if error is not None:
                self._no_reward[id(environment)] = error
            return value

        def can_judge() -> bool:
            if self.failed(environment) is not None:
                return False
            self.rewards += 1
            if self.runner.is_stuck(environment):
                self._no_reward[id(environment)] = "an earlier call on it has not come back"
            return not self.runner.is_stuck(environment)

        def watched() -> float | None:
            return judged(self._call(environment, get_reward, {}).result()) if can_judge() else None

        async def watched_async() -> float | None:
            if not can_judge():
                return None
            return judged(await asyncio.wrap_future(self._call(environment, get_reward, {})))

        return watched_async if inspect.iscoroutinefunction(get_reward) else watched

    def _call(
        self, environment: Any, method: Callable, arguments: Mapping[str, Any]
    ) -> "Future[tuple[Any, str | None]]":
        """Value and error of a method, called on the environment's own thread or, if it is async, with its tools."""
        found: list[Any] = []

        def keep() -> None:
            found.append(method(**arguments))

        async def keep_async() -> None:
            found.append(await method(**arguments))

        function = keep_async if inspect.iscoroutinefunction(method) else keep
        label = f"{type(environment).__name__}.{getattr(method, '__name__', 'release')}"
        request = Request(function, {}, environment, settings=settings_of(method), label=label)
        result: Future[tuple[Any, str | None]] = Future()

        def hand_over(done: Future) -> None:
            if done.cancelled() or done.exception() is not None:  # a mistake of ours: nobody must wait for it for ever
                result.set_exception(
                    done.exception() if not done.cancelled() else RuntimeError("the runner was closed")
                )
                return
            (outcome,) = done.result()
            late_or_failed = outcome.status != "ok"
            result.set_result((None, outcome.text.removeprefix("Error: ")) if late_or_failed else (found[0], None))

        self.runner.submit([request]).add_done_callback(hand_over)
        return result


def environment_kinds(trainer: "GRPOTrainer") -> set[type]:
    """The classes of a trainer's environments."""
    pools = trainer._environment_pool if trainer.environment_factories is not None else {}
    return {type(one) for pool in pools.values() for one in pool}


def _releases(kind: type) -> list[Callable]:
    """What the tools of a class of environments say gives back what a rollout held."""
    found = [settings_of(method).release for _, method in inspect.getmembers(kind, inspect.isfunction)]
    return [release for release in dict.fromkeys(found) if release is not None]


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False
