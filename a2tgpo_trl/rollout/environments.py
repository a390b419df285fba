"""Environments: tools that keep state, and whose failure costs a rollout, not the run.

An environment holds the state of a rollout. You write a class; each rollout has its own instance
(`environment_factory=Counter`), and the public methods are the tools:

    class Counter:
        answer: str | None = None  # if it is declared, reset sets it, and it wins over the row's
        turn_reward: float | None = None  # if it is declared, tools set it, and it is the reward of their turn

        def reset(self, goal: int, **row) -> str | None:  # the row's columns -> text behind the prompt
            self.count, self.answer = 0, str(goal)
            return f"Count to {goal}."

        def add(self, number: int) -> str:  # every other public method is a tool
            \"\"\"Add to the counter.

            Args:
                number: What to add.
            \"\"\"
            self.count, self.turn_reward = self.count + number, 0.1
            return str(self.count)

        def get_reward(self) -> float:  # if it is defined, after the last turn; its name in the log is the class's
            return float(str(self.count) == self.answer)

In a recipe, write `environment_factory: my_env.py:Counter`, with `environment_kwargs: {...}` for its arguments.

Each environment has its own thread. `reset` and `get_reward` of all environments of a batch run in parallel, as calls
do, with the time limit of tools or their own (`@tool(timeout=600)`; one after the other: `@tool(concurrency=1)`). So
if environments share something, let the row, or a seed in it, choose from it. Choosing by the order of the calls would
give the rollouts of a group different questions.

The first environment is made with the trainer, and any exception from it ends the run. A later one that cannot be
made, or takes longer than the time limit (`@tool` on `__init__` may set another), counts for this batch as one that
cannot be reset. The same holds for environments that replace one that hangs. A reward function that takes
`environments` gets, in place of an environment that could not be made, an object with the attributes of its class.

A rollout whose `reset` or `get_reward` fails gets no reward and is left out of its group; both are counted. If all
environments fail in two batches in a row, the run stops, as for a tool that is down. `answer` may be a list of
accepted texts; if it is None, the data set's answer counts. If environments give the answers, the data set needs no
answer column, and you need no data set at all (`max_steps` says how long to train).

`GRPOTrainer` itself resets environments, one after the other, and asks them for rewards. Here both go through the tool
runner. When the first of a batch is requested, all others are started as well: they are done by the time the parent
class reaches them.
"""

import asyncio
import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from types import MethodType
from typing import Any

from ..tools.calls import ToolCall
from ..tools.runner import ToolRunner
from ..tools.settings import ToolSettings, settings_of
from ..tools.workers import on_tool_thread
from .checks import check_factory, checked_environment


logger = logging.getLogger(__name__)

Result = tuple[Any, str | None]  # what a method returned, and what went wrong


class _Place:
    """Stands in for an environment while it is being made."""


class Environments:
    """Makes the environments of a trainer, and remembers which of them failed in this batch."""

    def __init__(self, runner: ToolRunner):
        self.runner = runner
        # Why an environment failed in this batch, by its id.
        self._failed: dict[int, str] = {}
        self._no_reward: dict[int, str] = {}
        self._stand_ins: dict[int, Any] = {}  # by id: stand in for environments that could not be made
        self.resets = self.rewards = 0
        # The batch's environments, known once the parent has chosen them; the rows they will be reset with, until they
        # are; and calls that were started but not requested yet, by id.
        self.batch: Callable[[], Sequence[Any]] = list
        self._rows: Sequence[Mapping[str, Any]] = ()
        self._begun: dict[str, dict[int, Future[Result]]] = {"reset": {}, "get_reward": {}}

    def begin_batch(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """`rows`: what the environments will be reset with, in their order."""
        self._failed.clear()
        self._no_reward.clear()
        self.resets = self.rewards = 0
        self._rows = rows
        for of_method in self._begun.values():
            of_method.clear()

    def guarded(self, factory: Any) -> Any:
        """A factory, or several by name, of environments whose `reset` and `get_reward` do not raise.

        Each is made on the thread that will make its calls. Making the first one must succeed, because the trainer
        learns the tools from it. If a later one cannot be made, the factory returns one that cannot be reset.
        """
        check_factory(factory)
        if isinstance(factory, Mapping):
            return {name: self.guarded(one) for name, one in factory.items()}
        kinds: list[type] = []

        def construct() -> Any:
            return checked_environment(factory())

        def make() -> Any:
            if kinds:
                return self._guard(self._made_in_time(construct, kinds[0]))
            environment = self.runner.construct(construct)
            kinds.append(type(environment))
            return self._guard(environment)

        return make

    def _made_in_time(self, construct: Callable[[], Any], kind: type) -> Any:
        place = _Place()
        settings = settings_of(kind.__init__)  # type: ignore[misc]  # of any class, whatever its arguments
        environment, error = self._call(place, construct, {}, settings, f"{kind.__name__}()").result()
        if error is not None:
            return self._stand_in(kind, error)
        self.runner.adopt(place, environment)
        return environment

    def _stand_in(self, kind: type, error: str) -> Any:
        """A stand-in of this class for one batch, not initialised: its rollout is skipped, nothing else is called."""

        def reset(**_: Any) -> None:
            raise RuntimeError(f"the environment could not be made: {error}")

        try:
            environment: Any = object.__new__(kind)
        except TypeError as refused:  # the class inherits from one written in C
            raise RuntimeError(f"An environment of class {kind.__name__} could not be made: {error}") from refused
        object.__setattr__(environment, "reset", reset)
        self._stand_ins[id(environment)] = environment
        return environment

    def _guard(self, environment: Any) -> Any:
        """Replace two methods by watched ones, on the instance, so that its class stays the one the parent knows."""
        watched = {"reset": self._watched_reset(environment, environment.reset)}
        if callable(getattr(type(environment), "get_reward", None)):
            watched["get_reward"] = self._watched_reward(environment, environment.get_reward)
        for name, method in watched.items():
            try:
                object.__setattr__(environment, name, method)  # works for frozen classes too
            except AttributeError as error:
                raise TypeError(
                    f"Environments of class {type(environment).__name__} do not accept new attributes: remove its "
                    f"__slots__, or add '__dict__' and '__weakref__' to them. {error}"
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

    def drop_unusable(self, pools: Mapping[Any, list]) -> None:
        """Remove environments that can no longer be called from the pools; new ones are made in their place."""
        for pool in pools.values():
            unusable = [one for one in pool if self._is_unusable(one)]
            pool[:] = [one for one in pool if not self._is_unusable(one)]  # by identity: some compare by value
            for environment in unusable:
                self.runner.forget(environment)
                self._stand_ins.pop(id(environment), None)

    def _is_unusable(self, environment: Any) -> bool:
        """Whether a call on the environment has not come back, or the environment was never made."""
        return self.runner.is_stuck(environment) or id(environment) in self._stand_ins

    def release(self, environments: Iterable[Any]) -> None:
        """After a batch, make environments give back what a rollout held, if one of their tools says how."""
        calls = [
            self._call(environment, MethodType(release, environment), {})
            for environment in environments
            if not self._is_unusable(environment)
            for release in _releases(type(environment))
        ]
        errors = [error for _, error in [call.result() for call in calls] if error is not None]
        if errors:
            logger.warning(
                f"{len(errors)} environments failed to release what their rollouts held. First error: {errors[0]}"
            )

    def _watched_reset(self, environment: Any, reset: Callable) -> Callable:
        @functools.wraps(reset)
        def watched(*arguments: Any, **row: Any) -> Any:
            if on_tool_thread():  # called by one of its tools: already on the right thread, and in order
                return reset(*arguments, **row)
            self.resets += 1
            value, error = self._reset(environment, row).result()
            if error is not None:
                self._failed[id(environment)] = error
            return value

        return watched

    def _reset(self, environment: Any, row: Mapping[str, Any]) -> "Future[Result]":
        begun = self._begun["reset"]
        rows, self._rows = self._rows, ()  # all are started once
        for other, others_row in zip(self.batch(), rows, strict=True) if rows else ():
            begun[id(other)] = self._call(other, other.reset.__wrapped__, others_row)
        return begun.pop(id(environment), None) or self._call(environment, environment.reset.__wrapped__, row)

    def _watched_reward(self, environment: Any, get_reward: Callable) -> Callable:
        @functools.wraps(get_reward)
        def watched() -> float | None:
            if on_tool_thread():
                return get_reward()
            return self._judged(environment, self._reward(environment).result()) if self._judges(environment) else None

        @functools.wraps(get_reward)
        async def watched_async() -> float | None:
            if on_tool_thread():
                return await get_reward()
            if not self._judges(environment):
                return None
            return self._judged(environment, await asyncio.wrap_future(self._reward(environment)))

        return watched_async if inspect.iscoroutinefunction(get_reward) else watched

    def _judges(self, environment: Any) -> bool:
        """Whether the environment is in a state to be asked for a reward."""
        if self.failed(environment) is not None:
            return False
        self.rewards += 1
        if self.runner.is_stuck(environment):
            self._no_reward[id(environment)] = "an earlier call on it has not returned"
        return not self.runner.is_stuck(environment)

    def _judged(self, environment: Any, found: Result) -> float | None:
        value, error = found
        if error is None and value is not None and not _is_finite(value):
            value, error = None, f"get_reward returned {value!r:.80}, which is not a finite number"
        if error is not None:
            self._no_reward[id(environment)] = error
        return value

    def _reward(self, environment: Any) -> "Future[Result]":
        begun = self._begun["get_reward"]
        if not begun:
            for other in self.batch():
                if hasattr(type(other), "get_reward") and self.failed(other) is None:
                    begun[id(other)] = self._call(other, other.get_reward.__wrapped__, {})
        return begun.pop(id(environment), None) or self._call(environment, environment.get_reward.__wrapped__, {})

    def _call(
        self,
        environment: Any,
        method: Callable,
        arguments: Mapping[str, Any],
        settings: ToolSettings | None = None,
        label: str | None = None,
    ) -> "Future[Result]":
        """Value and error of a method, called on the environment's own thread or, if it is async, with its tools."""
        found: list[Any] = []

        def keep() -> None:
            found.append(method(**arguments))

        async def keep_async() -> None:
            found.append(await method(**arguments))

        function = keep_async if inspect.iscoroutinefunction(method) else keep
        label = label or f"{type(environment).__name__}.{getattr(method, '__name__', 'release')}"
        call = ToolCall(function, {}, environment, settings=settings or settings_of(method), label=label)
        result: Future[Result] = Future()

        def hand_over(done: Future) -> None:
            if done.cancelled() or done.exception() is not None:  # our own bug: nobody must wait for ever
                result.set_exception(
                    done.exception() if not done.cancelled() else RuntimeError("the runner was closed")
                )
                return
            (outcome,) = done.result()
            late_or_failed = outcome.status != "ok"
            result.set_result((None, outcome.text.removeprefix("Error: ")) if late_or_failed else (found[0], None))

        self.runner.submit([call]).add_done_callback(hand_over)
        return result


def environment_kinds(pools: Mapping[Any, list]) -> set[type]:
    """The classes of the environments in a trainer's pools."""
    return {type(one) for pool in pools.values() for one in pool}


def _releases(kind: type) -> list[Callable]:
    """The functions that a class's tools name for giving back what a rollout held."""
    found = [settings_of(method).release for _, method in inspect.getmembers(kind, inspect.isfunction)]
    return [release for release in dict.fromkeys(found) if release is not None]


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False
