"""Takes the place of `a2tgpo_trl.tools.python` where that is not there yet: no walls, no limits, the same words."""

import sys
from types import ModuleType

from a2tgpo_trl.tools.results import ToolFailed


class PythonSession:
    """An interpreter that keeps its variables for one rollout."""

    def __init__(self, *, isolation: str = "auto", timeout: float = 5.0):
        self.isolation, self.timeout = isolation, timeout
        self.reset()

    def reset(self, **row) -> None:
        from a2tgpo_trl.tasks.arithmetic.school import Scratch

        self._scratch = Scratch()

    def python(self, code: str) -> str:
        """Run Python code, as a cell of a notebook: what it prints is returned, and the value of its last expression.
        Variables, functions and imports are kept for later calls. There is no network.

        Args:
            code: The code to run.

        Returns:
            What the code printed, or the error that it raised.
        """
        said = self._scratch.python(code)
        if "Error: " in said:
            raise ToolFailed(said, ["CodeFailed"])
        return said


def python_sessions(**options):
    PythonSession(**options)
    return lambda: PythonSession(**options)


def register() -> None:
    module = ModuleType("a2tgpo_trl.tools.python")
    module.PythonSession, module.python_sessions = PythonSession, python_sessions
    sys.modules[module.__name__] = module
