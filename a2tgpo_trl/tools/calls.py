"""a call of a tool, what comes of it, and the limits of all: the values that a `ToolRunner` takes and gives."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from .settings import ToolSettings


CallStatus = Literal["ok", "tool_error", "timeout"]

# Seconds that the call which is made here may take, for tools that can hand it on, to a socket, say; None: no limit.
# Nothing is set where no runner makes the call, nor in a process of a tool's own.
SECONDS: ContextVar[float | None] = ContextVar("SECONDS")


@dataclass(frozen=True)
class ToolCall:
    """A call to be made: a tool, its arguments, and the environment that it belongs to, if any."""

    function: Callable
    arguments: Mapping[str, Any]
    environment: Any = None
    # Where they are not those of the function: its settings, and the name that messages have for it.
    settings: ToolSettings | None = None
    label: str | None = None

    @property
    def name(self) -> str:
        return self.label or self.function.__name__


@dataclass(frozen=True)
class Outcome:
    """What a call came to. `text` is what the policy reads."""

    status: CallStatus
    text: str
    seconds: float = 0.0
    attempts: int = 0  # 0: the result was there already
    down: bool = False  # the tool says that it is no fault of the call
    made: bool = True  # whether the call, or one that is equal, reached the tool


@dataclass(frozen=True)
class Limits:
    """For all tools together, where a tool does not say otherwise."""

    concurrency: int = 64
    timeout: float | None = 60.0
    # Calls that may be out at once without having come back in time, before further ones wait.
    hung: int = 16
    # Seconds that a tool which is down, or calls that do not come back, are waited for; and whether the run is to stop
    # if the tool stays down.
    patience: float = 300.0
    stop_when_down: bool = True
