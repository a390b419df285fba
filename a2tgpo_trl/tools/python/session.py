"""code of one rollout, call after call -> its output, or its error; its variables are kept between calls."""

import logging
import threading

from ..results import ToolDown, ToolFailed
from .interpreter import GONE, KILLED, Finished, Interpreter, NotStarted
from .pool import Pool


logger = logging.getLogger(__name__)

MOST_CODE = 2**20  # bytes
ATTEMPTS = 3
SILENT = "(The code printed nothing, and its last line has no value.)"
LOST = "(The interpreter is a new one: variables and imports of earlier calls are gone.)\n"


class CodeFailed(ToolFailed):
    """Code raised or was ended. The policy reads the message: the output up to then, and the reason."""

    def __init__(self, text: str):
        super().__init__(text, [f"{__name__}.CodeFailed"])


class Unavailable(ToolDown):
    """Code could not be run, through no fault of its own. The reason goes to the log, not to the policy."""


class LocalSession:
    """Runs a rollout's code in an interpreter on this machine, taken from a pool at the first call."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._lock = threading.Lock()  # for the next three: a call may be cancelled while it waits for an interpreter
        self._interpreter: Interpreter | None = None
        self._running = self._cancelled = False
        self._lost = False

    def run(self, code: str) -> str:
        """Run code and return what it printed. Raises `CodeFailed` or `Unavailable`."""
        size = len(code.encode("utf-8", errors="replace"))
        if size > MOST_CODE:
            raise CodeFailed(f"Error: the code has {size} bytes, and {MOST_CODE} is the most.")
        with self._lock:
            self._running, self._cancelled = True, False
        try:
            return self._run(code)
        finally:
            with self._lock:
                self._running = False

    def _run(self, code: str) -> str:
        found = self._found(code)
        note, self._lost = LOST if self._lost else "", found.ended is not None
        text = note + found.text.removesuffix("\n")
        if found.ended is not None:
            gap = "\n" if found.text else ""
            raise CodeFailed(
                f"{text}{gap}Error: {found.ended}. The interpreter was ended, and its variables are gone."
            )
        if found.raised:
            raise CodeFailed(text)
        return text if found.text else note + SILENT

    def _found(self, code: str) -> Finished:
        """The result from this session's interpreter, or from a new one if the machine, not the code, ended that."""
        for _ in range(ATTEMPTS):
            interpreter = self._interpreter or self._take()
            found = interpreter.run(code, self._pool.settings.timeout)
            if found.ended is None:
                return found
            self._drop()
            by_machine = found.ended == KILLED or (found.ended == GONE and interpreter.server_has_ended())
            if not by_machine or self._cancelled:
                return found
            logger.warning("The machine ended a Python interpreter. Its rollout gets a new one, and is told so.")
            self._lost = True
        self._pool.doubt()
        raise Unavailable("the machine ends Python interpreters. The code was not run to its end.")

    def _take(self) -> Interpreter:
        try:
            taken = self._pool.take()
        except NotStarted as error:
            logger.warning(f"No Python interpreter can be started for a call: {error}")
            raise Unavailable("the machine can start no Python interpreter now. The code was not run.") from error
        with self._lock:
            self._interpreter = taken
            if self._cancelled:
                taken.kill()
        return taken

    def forget(self) -> None:
        """Drop the interpreter, so that the next rollout's code finds nothing of this one's."""
        self._drop()
        self._lost = False

    def lose(self) -> None:
        """Have the next call told that its state is gone: the rollout made earlier calls elsewhere."""
        self._lost = True

    def cancel(self) -> None:
        """From another thread: end the current call, if there is one, and its interpreter."""
        with self._lock:
            self._cancelled = True
            if self._running and self._interpreter is not None:
                self._interpreter.kill()

    def _drop(self) -> None:
        with self._lock:
            interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            interpreter.close()
