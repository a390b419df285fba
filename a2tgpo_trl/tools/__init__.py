"""What a policy can call, and how calls are made: `tool` says of a function what the run may expect of it."""

from .results import ToolDown
from .settings import ToolSettings, tool


__all__ = ["ToolDown", "ToolSettings", "tool"]
