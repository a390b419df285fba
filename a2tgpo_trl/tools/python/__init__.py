"""code of a policy -> what it prints, from an interpreter of its own that cannot reach anything else.

In a script, pass the sessions to a trainer as its environments:

    from a2tgpo_trl.tools.python import python_sessions
    A2TGPOTrainer(..., environment_factory=python_sessions(timeout=5, preload=["numpy"]))

In a recipe:

    environment_factory: a2tgpo_trl.tools.python:PythonSession
    environment_kwargs: {isolation: bubblewrap, timeout: 5, memory_mb: 512}

`python(code)` behaves like a notebook cell, and a rollout keeps its variables from call to call. Each interpreter
serves one rollout and is then thrown away. It is a single process that may not start others. It has no network, sees
its own libraries, and writes to a folder in memory that is removed with it (at the level `process`, the folder is on
disk). Between calls it is suspended.

If the code fails, the call is a `tool_error` with the output up to then. A call that takes too long, or prints more
than 4 MiB, ends the interpreter; the next call gets a new one and is told that its variables are gone. If the machine
cannot start an interpreter, the call waits; this does not count as an error of the policy. Sessions start with the
same hash order and the same states of `random` and `numpy.random`. Files cannot be locked, because rollouts could
communicate through locks on the libraries they share: open them in sqlite3 as "file:NAME?nolock=1", with uri=True.

The code can run in three places; `isolation="auto"` takes the first of the first two that works:

    bubblewrap   a process in its own namespaces. Needs `pip install a2tgpo_trl[python]` or the system's bubblewrap,
                 and permission to create namespaces.
    process      a process with limits and a system call filter; if root trains, it also has its own user. A warning
                 lists what is not stopped.
    remote       another machine or a container that runs `a2tgpo serve-python`: `remote="http://sandbox:8400"`. The
                 server sets the limits and the level. A2TGPO_PYTHON_TOKEN, the same on both sides, keeps others out.
                 If all its sessions are taken (`--most-sessions`), rollouts wait, as for a server that is down.

The first two do not stop code that exploits a hole in the kernel or measures how long things take. Each interpreter
uses three of the trainer's open files: raise `ulimit -n` for hundreds of rollouts per process.
"""

import functools
import inspect
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import MethodType
from typing import Any

from ...lookup import nearest
from ..settings import settings_of, tool
from .interpreter import NotStarted
from .levels import choose, table
from .pool import Pool, Settings, pool_of
from .remote import RemoteSession
from .session import CodeFailed, LocalSession, Unavailable


__all__ = ["CodeFailed", "PythonSession", "Unavailable", "python_sessions"]
__doc__ = f"{__doc__}\n{table()}\n"

_LOWEST = {"timeout": 0.01, "memory_mb": 16, "disk_mb": 1, "max_output": 64, "threads": 1, "warm": 0}


class PythonSession:
    """An environment with one tool, `python`.

    isolation: "bubblewrap", "process", or "auto" for the stronger of the two that works
    timeout: seconds per call, after which its interpreter is ended
    memory_mb, disk_mb: MiB for an interpreter beyond what it needs itself, and for its files, also in memory
    max_output: bytes of a result; the middle of a longer one is left out
    threads: of an interpreter
    warm: interpreters that each process keeps ready
    preload: modules that are loaded once for all interpreters, before the first call ("numpy", "sympy")
    python: the interpreter whose libraries code may use; by default the trainer's own
    remote: address of `a2tgpo serve-python`, which has the settings above
    """

    def __init__(
        self,
        *,
        isolation: str = "auto",
        timeout: float = 5.0,
        memory_mb: int = 512,
        disk_mb: int = 16,
        max_output: int = 8192,
        threads: int = 32,
        warm: int = 4,
        preload: Sequence[str] = (),
        python: str | None = None,
        remote: str | None = None,
    ):
        given = {name: value for name, value in locals().items() if name not in ("self", "remote")}
        self._session: LocalSession | RemoteSession
        if remote is not None:
            _nothing_beside_remote(given)
            self._session = RemoteSession(remote)
            check: Callable[[], Any] = self._session.check
            ends_after = None
        else:
            pool = pool_of(settings_from(**given))
            try_out(pool)
            self._session, check, ends_after = LocalSession(pool), pool.check, timeout
        self.python = _with(self.python, check, ends_after)  # type: ignore[method-assign]

    def reset(self, **row: Any) -> None:
        """A new rollout: its interpreter has seen no code."""
        self._session.forget()

    def _cancel(self) -> None:
        self._session.cancel()

    def _release(self) -> None:
        """Free the interpreter's memory at the end of a rollout: the next one may start much later."""
        self._session.forget()

    @tool(cancel=_cancel, release=_release)
    def python(self, code: str) -> str:
        """Run Python code, as a cell of a notebook: what it prints is returned, and the value of its last expression.
        Variables, functions and imports are kept for later calls. There is no network.

        Args:
            code: The code to run.

        Returns:
            What the code printed, or the error that it raised.
        """
        return self._session.run(code)


def python_sessions(**options: Any) -> Callable[[], PythonSession]:
    """An `environment_factory`. The options are those of `PythonSession`; wrong ones raise an error immediately.

    Example: `A2TGPOTrainer(..., environment_factory=python_sessions(isolation="bubblewrap", preload=["sympy"]))`
    """
    known = inspect.signature(PythonSession).parameters
    for name in options.keys() - known.keys():
        raise ValueError(f"Python sessions have no setting {name!r}.{nearest(name, known)}")
    PythonSession(**options)  # tries them
    return functools.partial(PythonSession, **options)


def settings_from(*, isolation: str, python: str | None, preload: Sequence[str], **numbers: Any) -> Settings:
    """Check a user's options, and return them as `Settings`."""
    if isinstance(preload, str) or not all(isinstance(name, str) and name.isidentifier() for name in preload):
        raise ValueError(f"preload must be a list of module names; got {preload!r}.")
    for name, value in numbers.items():
        whole = name != "timeout"
        is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not is_number or not _LOWEST[name] <= value < math.inf:
            kind = "whole number" if whole else "number of seconds"
            raise ValueError(f"{name} must be a {kind}, at least {_LOWEST[name]}; got {value!r}.")
    python = sys.executable if python is None else _program(python)
    return Settings(choose(isolation, python), preload=tuple(preload), python=python, **numbers)


def _program(python: str) -> str:
    """The interpreter's absolute path, since it is started elsewhere. Links stay: they lead to its libraries."""
    found = shutil.which(os.path.expanduser(python))
    if found is None:
        raise ValueError(f"python: there is no program {python!r} that can be run.")
    return os.path.abspath(found)


def try_out(pool: Pool) -> None:
    """Raise an error if no interpreter runs with these settings: that is the user's mistake, not one of the policy's
    call. If interpreters have run before, the machine is at fault, and the run waits for it."""
    if pool.has_worked:
        return
    try:
        pool.check()
    except NotStarted as error:
        pool.close()
        why = str(error).splitlines()[-1]  # the lines before may be the traceback of an import
        raise ValueError(f"No Python interpreter runs code with these settings: {why}") from error


def _nothing_beside_remote(given: dict[str, Any]) -> None:
    defaults = inspect.signature(PythonSession).parameters
    idle = [name for name, value in given.items() if value != defaults[name].default]
    if idle:
        raise ValueError(
            f"{', '.join(idle)} would have no effect with remote=: pass them to a2tgpo serve-python on that machine."
        )


def _with(method: Callable, check: Callable[[], Any], ends_after: float | None) -> Callable:
    """The method of this one environment, with a check of what it needs and its own time limit."""
    function = method.__func__  # type: ignore[attr-defined]
    settings = settings_of(function)

    @tool(**{**asdict(settings), "check": settings.check or check, "ends_after": ends_after})
    @functools.wraps(function)
    def checked(self: PythonSession, code: str) -> str:
        return function(self, code)

    return MethodType(checked, method.__self__)  # type: ignore[attr-defined]
