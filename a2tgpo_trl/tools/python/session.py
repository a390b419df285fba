"""code of one rollout, call after call -> its output, or what went wrong; its variables are kept in between."""

import threading

from ..results import ToolFailed
from .interpreter import Interpreter
from .pool import Pool


MOST_CODE = 2**20  # bytes
SILENT = "(The code printed nothing, and its last line has no value.)"
LOST = "(The interpreter is a new one: variables and imports of earlier calls are gone.)\n"


class CodeFailed(ToolFailed):
    """Code raised or was ended. The message is what the policy reads: output until then, and the reason."""

    def __init__(self, text: str):
        super().__init__(text, [f"{__name__}.CodeFailed"])


class LocalSession:
    """Runs the code of a rollout in an interpreter of this machine, taken from a pool at the first call."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._lock = threading.Lock()  # of the two below: a call may be cancelled while it waits for its interpreter
        self._interpreter: Interpreter | None = None
        self._cancelled = False
        self._lost = False

    def run(self, code: str) -> str:
        """What the code printed. Raises `CodeFailed`."""
        size = len(code.encode("utf-8", errors="replace"))
        if size > MOST_CODE:
            raise CodeFailed(f"Error: the code has {size} bytes, and {MOST_CODE} is the most.")
        self._cancelled = False
        if self._interpreter is None:
            taken = self._pool.take()
            with self._lock:
                self._interpreter = taken
                if self._cancelled:
                    taken.kill()
        note, self._lost = LOST if self._lost else "", False
        assert self._interpreter is not None
        found = self._interpreter.run(code, self._pool.settings.timeout)
        text = note + found.text.removesuffix("\n")
        if found.ended is not None:
            self._drop()
            self._lost = True
            gap = "\n" if found.text else ""
            raise CodeFailed(f"{text}{gap}Error: {found.ended}. It was ended, and its variables are gone.")
        if found.raised:
            raise CodeFailed(text)
        return text if found.text else note + SILENT

    def forget(self) -> None:
        """Before another rollout: its code finds nothing of this one's."""
        self._drop()
        self._lost = False

    def lose(self) -> None:
        """The code that comes has called before, elsewhere: it is to be told that nothing is left of it."""
        self._lost = True

    def cancel(self) -> None:
        """From another thread: end the call that is being made, and its interpreter."""
        with self._lock:
            self._cancelled = True
            if self._interpreter is not None:
                self._interpreter.kill()

    def _drop(self) -> None:
        with self._lock:
            interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            interpreter.close()
