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


# What a setting may be, in words and as a test.
_TIMEOUT = ("a number of seconds above 0", lambda value: _is_number(value) and value > 0)
_SECONDS = ("a number of seconds, at least 0", lambda value: _is_number(value) and value >= 0)
_FROM_0 = ("a whole number, at least 0", lambda value: _is_whole(value) and value >= 0)
_FROM_1 = ("a whole number, at least 1", lambda value: _is_whole(value) and value >= 1)
_SWITCH = ("true or false", lambda value: isinstance(value, bool))
_TEXT = ("text", lambda value: isinstance(value, str))
_EXCEPTIONS = ("a tuple of exception classes", _are_exceptions)
_FUNCTION = (
    "a function (or other callable) that is not async",
    lambda value: callable(value) and not inspect.iscoroutinefunction(value),
)


def _setting(default: Any, rule: tuple[str, Callable[[Any], bool]], python_only: bool = False) -> Any:
    """A field with its rule; if its default is None, it may be None. A recipe cannot set a `python_only` field."""
    return field(default=default, metadata={"rule": rule, "python_only": python_only})


@dataclass(frozen=True)
class ToolSettings:
    """How the calls of a tool are made. None: the trainer's config applies, as for all tools."""

    # Seconds that one attempt may take.
    timeout: float | None = _setting(None, _TIMEOUT)
    # Seconds after which a call ends by itself. A warning says if the limit above is not longer.
    ends_after: float | None = _setting(None, _TIMEOUT, python_only=True)
    # Attempts after the first, if it raised one of `retry_on` or took too long.
    retries: int = _setting(0, _FROM_0)
    # Seconds before the second attempt; doubled for each further one (up to 30 s, if it is below that), and changed
    # randomly by up to half.
    backoff: float = _setting(0.5, _SECONDS)
    retry_on: tuple[type[BaseException], ...] = _setting((Exception,), _EXCEPTIONS, python_only=True)
    # Calls of this tool that run at a time. With 1, all of them are made on one thread.
    concurrency: int | None = _setting(None, _FROM_1)
    # Tokens of a result; the rest is cut off.
    max_result_tokens: int | None = _setting(None, _FROM_1)
    # Whether equal arguments give equal results, so that a run makes the call once.
    cache: bool = _setting(False, _SWITCH)
    # What results depend on besides arguments, signature and docstring, such as the data: recorded results
    # (`tool_cache`) are used only for a tool with the same version.
    version: str | None = _setting(None, _TEXT, python_only=True)
    # Whether a call that succeeds ends the rollout, as `submit(answer)` does.
    final: bool = _setting(False, _SWITCH)
    # Whether a call does more than look things up, as `book(flight)` does: for turn rewards.
    changes_state: bool = _setting(False, _SWITCH)
    # Raises if something the tool needs (a server, a file) is missing. Called before the first step and after
    # failures.
    check: Callable[[], Any] | None = _setting(None, _FUNCTION, python_only=True)
    # For an environment's method: called with the environment, from another thread, when a call is late. Makes the
    # call return, and returns immediately itself. The environment can then be used further.
    cancel: Callable[[Any], Any] | None = _setting(None, _FUNCTION, python_only=True)
    # For an environment's method: called with the environment after the rewards of each batch, to free what a rollout
    # held.
    release: Callable[[Any], Any] | None = _setting(None, _FUNCTION, python_only=True)
    # Whether calls run in separate processes, which can be killed: for code that may hang or crash in C.
    process: bool = _setting(False, _SWITCH)

    def __post_init__(self):
        for one in fields(self):
            value, (expected, is_right) = getattr(self, one.name), one.metadata["rule"]
            if not is_right(value) and not (value is None and one.default is None):
                raise ValueError(f"A tool's {one.name} must be {expected}; got {value!r}.")


def tool(**settings: Any) -> Callable[[Function], Function]:
    """Set how calls of a function, or of an environment's method, are made, by the fields of `ToolSettings`.

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
    """The settings that `tool` gave a function, or the defaults."""
    return getattr(function, _SETTINGS, ToolSettings())


def identity(function: Callable, settings: ToolSettings) -> str:
    """A digest of what identifies a tool and its results: its name, signature, docstring and `version`."""
    known = [function.__name__, str(inspect.signature(function)), inspect.getdoc(function), settings.version]
    return blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()


def with_recipe(function: Callable, given: Mapping[str, Any] | None) -> ToolSettings:
    """The settings that `tool` gave a function, overridden by a recipe's."""
    known = [one.name for one in fields(ToolSettings) if not one.metadata["python_only"]]
    return _changed(settings_of(function), given or {}, f"tool_settings of {function.__name__}", known)


def check_tool_settings(functions: Iterable[Callable], given: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise an error unless a recipe's settings are valid and belong to tools that exist."""
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
