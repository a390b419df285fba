"""@tool(timeout=..., retries=...) on a function, or the same words in a recipe -> how its calls are made."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from ..lookup import nearest


Function = TypeVar("Function", bound=Callable[..., Any])
_SETTINGS = "__a2tgpo_tool__"
# What only Python can say; a recipe says the others.
_PYTHON_ONLY = ("retry_on", "check", "cancel", "release")


@dataclass(frozen=True)
class ToolSettings:
    """How the calls of a tool are made. None: as `A2TGPOConfig` says for all tools."""

    # Seconds that one attempt may take.
    timeout: float | None = None
    # Attempts after the first, where it raised one of `retry_on` or took too long.
    retries: int = 0
    # Seconds before the second attempt; doubled for each further one (up to 30 s, if it is below that), and spread at
    # random by up to half.
    backoff: float = 0.5
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    # Calls of this tool that run at once.
    concurrency: int | None = None
    # Tokens of a result; the rest is cut off.
    max_result_tokens: int | None = None
    # Whether equal arguments give equal results, so that a run asks once.
    cache: bool = False
    # Whether a call that succeeds ends the rollout, as `submit(answer)` does.
    final: bool = False
    # Whether a call does more than look things up, as `book(flight)` does: for rewards of turns.
    changes_state: bool = False
    # Raises if what the tool needs (a server, a file) is not there. Asked before the first step and after failures.
    check: Callable[[], Any] | None = None
    # Of a method of an environment: called with it, from another thread, when a call has not come back in time. Makes
    # the call come back, and returns at once. The environment then goes on.
    cancel: Callable[[Any], Any] | None = None
    # Of a method of an environment: called with it after the rewards of each batch, to give back what a rollout held.
    release: Callable[[Any], Any] | None = None
    # Whether calls run in processes of their own, which can be killed: for code that may hang or crash in C.
    process: bool = False

    def __post_init__(self):
        for name, is_right, expected in _RULES:
            value = getattr(self, name)
            if not is_right(value):
                raise ValueError(f"A tool's {name} must be {expected}; got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _are_exceptions(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in value
    )


def _is_check(value: Any) -> bool:
    return callable(value) and not inspect.iscoroutinefunction(value)


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("timeout", lambda value: value is None or (_is_number(value) and value > 0), "a number of seconds above 0"),
    ("retries", lambda value: _is_count(value, 0), "a whole number from 0 on"),
    ("backoff", lambda value: _is_number(value) and value >= 0, "a number of seconds from 0 on"),
    ("retry_on", _are_exceptions, "a tuple of exception classes"),
    ("concurrency", lambda value: value is None or _is_count(value, 1), "a whole number from 1 on"),
    ("max_result_tokens", lambda value: value is None or _is_count(value, 1), "a whole number from 1 on"),
    ("cache", _is_switch, "true or false"),
    ("final", _is_switch, "true or false"),
    ("check", lambda value: value is None or _is_check(value), "a function (not async) that can be called"),
    ("cancel", lambda value: value is None or _is_check(value), "a function (not async) that can be called"),
    ("release", lambda value: value is None or _is_check(value), "a function (not async) that can be called"),
    ("process", _is_switch, "true or false"),
    ("changes_state", _is_switch, "true or false"),
)


def tool(**settings: Any) -> Callable[[Function], Function]:
    """Say how calls of a function, or of a method of an environment, are made. The words are those of `ToolSettings`.

    Example: a search server that is asked again, three times at most, and must be up before training begins.

    ```python
    >>> @tool(timeout=10, retries=3, concurrency=16, check=ping)
    ... def search(query: str) -> str: ...
    ```
    """
    made = _from_words(ToolSettings(), settings, "tool()")

    def decorate(function: Function) -> Function:
        setattr(function, _SETTINGS, made)
        return function

    return decorate


def settings_of(function: Callable) -> ToolSettings:
    """What `tool` said of a function; the defaults if it said nothing."""
    return getattr(function, _SETTINGS, ToolSettings())


def with_words(function: Callable, words: Mapping[str, Any] | None) -> ToolSettings:
    """What `tool` said of a function, with the words of the recipe in their place."""
    where = f"tool_settings of {function.__name__}"
    return _from_words(settings_of(function), words or {}, where, without=_PYTHON_ONLY)


def check_words(functions: Iterable[Callable], given: Mapping[str, Mapping[str, Any]]) -> None:
    """A recipe's settings are those of tools that exist, and possible."""
    by_name = {function.__name__: function for function in functions}
    for name, words in given.items():
        if name not in by_name:
            raise ValueError(f"tool_settings: there is no tool {name!r}.{nearest(str(name), by_name)}")
        if not isinstance(words, Mapping):
            raise ValueError(f"tool_settings: {name} must be a mapping of settings; got {words!r}.")
        with_words(by_name[name], words)


def _from_words(
    base: ToolSettings, words: Mapping[str, Any], where: str, without: tuple[str, ...] = ()
) -> ToolSettings:
    known = [field.name for field in fields(ToolSettings) if field.name not in without]
    for word in words:
        if word not in known:
            raise ValueError(f"{where}: there is no setting {word!r}.{nearest(str(word), known)}")
    try:
        return replace(base, **words)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
