"""a function that can be imported -> calls in separate processes, which can be killed.

For tools that may hang or crash in C code: a thread cannot be stopped, a process can. The process reads one call per
line from its standard input and answers with a line; what the tool prints goes to standard error. The process, and
whatever the tool started in it, ends with the run, however the run ends.
"""

import fcntl
import importlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TextIO

from .results import ToolFailed, as_text, class_names, describe


class ProcessDied(RuntimeError):
    """The process that made a call ended before it answered."""


class ProcessWorker:
    """A process that makes calls of one function, one after the other, until it is killed or dies."""

    def __init__(self, function: Callable):
        place = import_path(function)
        # The process finds the same modules as the run, including what was added to `sys.path` since the run started.
        code = f"import sys; sys.path[:] = {[*map(str, sys.path)]}; import {__name__} as it; it.serve(*{place})"
        self._command = [sys.executable, "-c", code]
        self._process: subprocess.Popen[str] | None = None
        self._killed = False
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        return self._process is not None and not self._killed and self._process.poll() is None

    def start(self) -> str:
        """Start the process, and wait until it has imported the function. Raises what went wrong, as `call` does."""
        with self._lock:
            if self._killed:
                raise ProcessDied("the tool's process was ended before it was started")
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # a separate process group, which can be killed as a whole
            )
        return self._answer(self._process)

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Make a call and return its text. Raises what went wrong; `kill` from another thread makes it raise."""
        line = json.dumps(arguments) + "\n"
        process = self._process
        assert process is not None and process.stdin is not None, "not started"
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: the pipe was closed
            self.close()
            raise ProcessDied("the tool's process ended before it was called") from error
        return self._answer(process)

    def _answer(self, process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.endswith("\n"):
            code = process.wait()
            self.close()  # processes that the tool started may still be running
            raise ProcessDied(f"the tool's process ended with code {code} before it answered")
        answer = json.loads(line)
        if answer["error"] is not None:
            raise ToolFailed(answer["text"], answer["error"])
        return answer["text"]

    def kill(self) -> None:
        """End the process immediately, and the call that it is making. Does not wait."""
        with self._lock:
            self._killed = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # including what the tool started

    def close(self) -> None:
        """Kill the process, and wait until it has ended."""
        self.kill()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):  # data that could no longer be written to it
                    pipe.close()  # type: ignore[union-attr]  # both are pipes


class ProcessPool:
    """Idle processes, by function, to be used for the next call."""

    def __init__(self) -> None:
        self._idle: defaultdict[Callable, list[ProcessWorker]] = defaultdict(list)
        self._all: set[ProcessWorker] = set()

    def take(self, function: Callable) -> ProcessWorker:
        """A process that is alive, or a new one that is not started yet."""
        idle = self._idle[function]
        while idle:
            process = idle.pop()
            if process.alive:
                return process
            self._all.discard(process)
        process = ProcessWorker(function)
        self._all.add(process)
        return process

    def give_back(self, process: ProcessWorker, function: Callable) -> None:
        if process.alive:
            self._idle[function].append(process)
        else:
            self._all.discard(process)

    def close(self) -> None:
        for process in self._all:
            process.close()


def import_path(function: Callable) -> list[str]:
    """Module, name and file by which another process finds a function. Raises a ValueError if it cannot be found."""
    module, name = function.__module__, function.__qualname__
    problem = None
    if module == "__main__":
        problem = "it is defined in the script that is run: move it to a module of its own"
    elif "<" in name or "." in name or hasattr(function, "__self__"):
        problem = "it is defined inside another function, or is a method: define it at the top level of a module"
    elif module not in sys.modules or getattr(sys.modules[module], name, None) is not function:
        problem = (
            f"the module {module} has something else under that name, or nothing: define it there under its own name"
        )
    if problem:
        raise ValueError(f"A tool with process=True must be importable, and {name} is not: {problem}.")
    file = getattr(sys.modules[module], "__file__", None)
    return [module, name, file or ""]


# ---- in the tool's process


def serve(module: str, name: str, file: str) -> None:
    """Answer calls until there are none left."""
    calls, answers = _take_pipes()
    fcntl.fcntl(calls, fcntl.F_SETOWN, -os.getpgrp())
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    _end_with_run(calls, True)
    found: list[Callable] = []
    reply = _reply(lambda: found.append(load(module, name, file)))
    while True:
        _end_with_run(calls, False)
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
        line = calls.readline() if found else ""
        if not line:
            break
        _end_with_run(calls, True)
        arguments = json.loads(line)
        reply = _reply(partial(found[0], **arguments))
    os.killpg(0, signal.SIGKILL)  # including what the tool started


def _take_pipes() -> tuple[TextIO, TextIO]:
    """The streams for calls and answers. The tool, and what it starts, gets other streams in their place."""
    calls, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return calls, answers


def _end_with_run(calls: TextIO, switch: bool) -> None:
    """Set whether the kernel ends this process group when the run, at the other end of the pipe, has ended.

    A watching thread would not work: a tool that hangs in C code may never let it run. SIGIO, which ends a process
    that has no handler for it, also comes with calls, so it is switched on only while no call is awaited.
    """
    flags = fcntl.fcntl(calls, fcntl.F_GETFL)
    fcntl.fcntl(calls, fcntl.F_SETFL, flags | os.O_ASYNC if switch else flags & ~os.O_ASYNC)
    if switch:
        poll = select.poll()
        poll.register(calls, 0)  # only detects that the other end was closed, just before the switch
        if poll.poll(0):
            os.killpg(0, signal.SIGKILL)


def _reply(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"text": as_text(call()), "error": None}
    except BaseException as error:  # noqa: BLE001  # as in a thread, a tool that exits has failed
        return {"text": describe(error), "error": class_names(type(error))}


def load(module: str, name: str, file: str) -> Callable:
    """The function, by its module's name, or from its file if a recipe loaded it by path."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        spec = importlib.util.spec_from_file_location(module, file)
        if spec is None or spec.loader is None:
            raise
        found = importlib.util.module_from_spec(spec)
        sys.modules[module] = found
        spec.loader.exec_module(found)
    return getattr(found, name)
