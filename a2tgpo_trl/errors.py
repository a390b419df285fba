"""What ends a run, or keeps it from beginning, in words that a user can act on."""

import os
from typing import Any


class RecipeError(ValueError):
    """A recipe, or a command line overriding it, asks for something impossible: the message is all a user needs."""


class ResumeError(RecipeError):
    """A run cannot go on as it was asked to: the message is all a user needs."""


class RunStopped(RuntimeError):
    """Tools or environments have failed for good, and the run was set not to go on without them."""


class RunInterrupted(SystemExit):
    """The run was asked to stop, and has saved a checkpoint. Uncaught, this ends the process with "run me again".

    Where it is caught, SIGTERM is ignored: a launcher sends it again to processes that end late."""

    def __init__(self) -> None:
        super().__init__(os.EX_TEMPFAIL)


def shown(value: Any) -> str:
    """A value as messages about it show it, cut if it is long.

    Example: ["1969", 7] -> "['1969', 7]"
    """
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
