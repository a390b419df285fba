"""`@tool(timeout=..., retries=...)` on a function, or the same settings in a recipe -> how its calls are made."""

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from typing import Any, TypeVar

from ..lookup import nearest


Function = TypeVar("Function", bound=Callable[..., Any])
_SETTINGS = "__a2tgpo_tool__"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_exceptions(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in value
    )


# What a setting may be: in words, and as a test.
_TIMEOUT = ("a number of seconds above 0", lambda value: _is_number(value) and value > 0)
_SECONDS = ("a number of seconds from 0 on", lambda value: _is_number(value) and value >= 0)
_FROM_0 = ("a whole number from 0 on", lambda value: _is_whole(value) and value >= 0)
_FROM_1 = ("a whole number from 1 on", lambda value: _is_whole(value) and value >= 1)
_SWITCH = ("true or false", lambda value: isinstance(value, bool))
_TEXT = ("text", lambda value: isinstance(value, str))
_EXCEPTIONS = ("a tuple of exception classes", _are_exceptions)
_FUNCTION = (
    "a function (not async) that can be called",
    lambda value: callable(value) and not inspect.iscoroutinefunction(value),
)


def _setting(default: Any, rule: tuple[str, Callable[[Any], bool]], python_only: bool = False) -> Any:
    """A field with its rule; one whose default is None may be None. A recipe cannot say what `python_only` is."""
    return field(default=default, metadata={"rule": rule, "python_only": python_only})


@dataclass(frozen=True)
class ToolSettings:
    """How the calls of a tool are made. None: as the trainer's config says for all tools."""

    # Seconds that one attempt may take.
    timeout: float | None = _setting(None, _TIMEOUT)
    # Attempts after the first, where it raised one of `retry_on` or took too long.
    retries: int = _setting(0, _FROM_0)
    # Seconds before the second attempt; doubled for each further one (up to 30 s, if it is below that), and spread at
    # random by up to half.
    backoff: float = _setting(0.5, _SECONDS)
    retry_on: tuple[type[BaseException], ...] = _setting((Exception,), _EXCEPTIONS, python_only=True)
    # Calls of this tool that run at once. With 1, all of them are made on one thread.
    concurrency: int | None = _setting(None, _FROM_1)
    # Tokens of a result; the rest is cut off.
    max_result_tokens: int | None = _setting(None, _FROM_1)
    # Whether equal arguments give equal results, so that a run asks once.
    cache: bool = _setting(False, _SWITCH)
    # What results depend on beside arguments, signature and docstring, such as the data: results that a file has kept
    # (`tool_cache`) are those of a tool whose version is the same.
    version: str | None = _setting(None, _TEXT, python_only=True)
    # Whether a call that succeeds ends the rollout, as `submit(answer)` does.
    final: bool = _setting(False, _SWITCH)
    # Whether a call does more than look things up, as `book(flight)` does: for rewards of turns.
    changes_state: bool = _setting(False, _SWITCH)
    # Raises if what the tool needs (a server, a file) is not there. Asked before the first step and after failures.
    check: Callable[[], Any] | None = _setting(None, _FUNCTION, python_only=True)
    # Of a method of an environment: called with it, from another thread, when a call has not come back in time. Makes
    # the call come back, and returns at once. The environment then goes on.
    cancel: Callable[[Any], Any] | None = _setting(None, _FUNCTION, python_only=True)
    # Of a method of an environment: called with it after the rewards of each batch, to give back what a rollout held.
    release: Callable[[Any], Any] | None = _setting(None, _FUNCTION, python_only=True)
    # Whether calls run in processes of their own, which can be killed: for code that may hang or crash in C.
    process: bool = _setting(False, _SWITCH)

    def __post_init__(self):
        for one in fields(self):
            value, (expected, is_right) = getattr(self, one.name), one.metadata["rule"]
            if not is_right(value) and not (value is None and one.default is None):
                raise ValueError(f"A tool's {one.name} must be {expected}; got {value!r}.")


def tool(**settings: Any) -> Callable[[Function], Function]:
    """Say how calls of a function, or of a method of an environment, are made: by the fields of `ToolSettings`.

    Example: a search server that is asked again, three times at most, and must be up before training begins.

    ```python
    >>> @tool(timeout=10, retries=3, concurrency=16, check=ping)
    ... def search(query: str) -> str: ...
    ```
    """
    made = _changed(ToolSettings(), settings, "tool()", [one.name for one in fields(ToolSettings)])

    def decorate(function: Function) -> Function:
        setattr(function, _SETTINGS, made)
        return function

    return decorate


def settings_of(function: Callable) -> ToolSettings:
    """What `tool` said of a function; the defaults if it said nothing."""
    return getattr(function, _SETTINGS, ToolSettings())


def identity(function: Callable, settings: ToolSettings) -> str:
    """A digest of what is known of a tool and its results: its name, signature and docstring, and its `version`."""
    known = [function.__name__, str(inspect.signature(function)), inspect.getdoc(function), settings.version]
    return blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()


def with_recipe(function: Callable, given: Mapping[str, Any] | None) -> ToolSettings:
    """What `tool` said of a function, with a recipe's settings in their place."""
    known = [one.name for one in fields(ToolSettings) if not one.metadata["python_only"]]
    return _changed(settings_of(function), given or {}, f"tool_settings of {function.__name__}", known)


def check_tool_settings(functions: Iterable[Callable], given: Mapping[str, Mapping[str, Any]]) -> None:
    """A recipe's settings are those of tools that exist, and possible."""
    by_name = {function.__name__: function for function in functions}
    for name, settings in given.items():
        if name not in by_name:
            raise ValueError(f"tool_settings: there is no tool {name!r}.{nearest(str(name), by_name)}")
        if not isinstance(settings, Mapping):
            raise ValueError(f"tool_settings: {name} must be a mapping of settings; got {settings!r}.")
        with_recipe(by_name[name], settings)


def _changed(base: ToolSettings, given: Mapping[str, Any], where: str, known: list[str]) -> ToolSettings:
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: there is no setting {name!r}.{nearest(str(name), known)}")
    try:
        return replace(base, **given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
