"""a tool call, its outcome, and the limits of all calls: the values that a `ToolRunner` takes and gives."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from .settings import ToolSettings


CallStatus = Literal["ok", "tool_error", "timeout"]

# Seconds that the current call may take, for tools that can pass it on, such as to a socket; None: no limit. Not set
# if no runner makes the call, nor in a tool's separate process.
SECONDS: ContextVar[float | None] = ContextVar("SECONDS")


@dataclass(frozen=True)
class ToolCall:
    """A call to be made: a tool, its arguments, and the environment that it belongs to, if any."""

    function: Callable
    arguments: Mapping[str, Any]
    environment: Any = None
    # If they differ from the function's own: its settings, and its name in messages.
    settings: ToolSettings | None = None
    label: str | None = None

    @property
    def name(self) -> str:
        return self.label or self.function.__name__


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call. `text` is what the policy reads."""

    status: CallStatus
    text: str
    seconds: float = 0.0
    attempts: int = 0  # 0: the result was already known
    down: bool = False  # the tool says that the call is not at fault
    made: bool = True  # whether the call, or an equal one, reached the tool


@dataclass(frozen=True)
class Limits:
    """Limits for all tools together, unless a tool sets its own."""

    concurrency: int = 64
    timeout: float | None = 60.0
    # Late calls that may be out at the same time before further calls wait.
    hung: int = 16
    # Seconds to wait for a tool that is down, or for calls that do not return; and whether the run stops if the tool
    # stays down.
    patience: float = 300.0
    stop_when_down: bool = True
