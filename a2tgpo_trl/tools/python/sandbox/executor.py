"""code -> what it prints and the value of its last expression, on standard output; then a message to the trainer.

    trainer -> executor    16 random bytes, length of the code (4 bytes), the code in UTF-8
    executor -> trainer    the same 16 random bytes and one byte: "+" the code ran, "-" it raised

Output goes through a separate pipe, which the trainer reads and cuts. So nothing is parsed that the code could have
written: code that finds the channel and the random bytes in its own interpreter can only report too early that it is
done; any other byte on the channel ends the interpreter.
"""

import ast
import builtins
import ctypes
import linecache
import os
import random
import signal
import socket
import struct
import sys
import traceback
import types
from contextlib import suppress
from importlib.machinery import PathFinder

from . import confinement, seccomp


CHANNEL = 3  # the number of the channel's file, in every interpreter
NONCE, LENGTH = 16, struct.Struct("<I")
RAN, RAISED = b"+", b"-"
READY, FAILED = b"R", b"E"
FRAMES = 8  # the last frames of a traceback


# ---- confining itself


def confine(options: dict, folder: str, user: "int | None") -> None:
    """Set up what an interpreter needs, and give up everything else. No privilege is left afterwards."""
    scratch = folder or confinement.SCRATCH
    if not folder:
        confinement.make_scratch(options["disk"], options["visible"])
    os.chdir(scratch)
    os.environ["HOME"] = os.environ["TMPDIR"] = scratch
    confinement.become(user)
    confinement.end_with_parent()
    confinement.be_private()
    tasks = options["threads"] + 2 if user is not None or options["counts_own"] else None
    memory = options["baseline"] + options["memory"]
    confinement.limit(memory, options["disk"], options["files"], options["cpu"], tasks)
    seccomp.install()


def main(channel: socket.socket, options: dict, folder: str, user: "int | None") -> None:
    """Be an interpreter until there is no more code. Does not return. It writes to `folder` on the disk; if that is
    "", it has its own namespaces and makes a folder in memory."""
    try:
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ, 32, 33):
                signal.signal(number, signal.SIG_DFL)
        own = os.pidfd_open(os.getpid())  # lets the trainer stop and end this process, and no other
        confine(options, folder, user)
    except BaseException as error:  # noqa: BLE001  # the waiting caller must be told
        say_failed(channel, error)
        os._exit(1)
    socket.send_fds(channel, [READY], [own])
    os.close(own)
    try:
        Executor(channel).serve()
    finally:
        os._exit(1)  # the code closed a file that this loop needs: the trainer is told by the end of the channel


def say_failed(channel: socket.socket, error: BaseException) -> None:
    """Tell the trainer why it gets no interpreter. It may have stopped listening."""
    with suppress(OSError):
        channel.sendall(FAILED + f"{type(error).__name__}: {error}".encode(errors="replace")[:2000])


# ---- running code


class Executor:
    """The state of one rollout's code, and the loop that runs it."""

    def __init__(self, channel: socket.socket):
        self._channel = channel
        self._count = 0
        module = types.ModuleType("__main__")
        module.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = module
        self._names = module.__dict__
        random.seed(0)
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed(0)
        else:
            sys.meta_path.insert(0, SeedsNumpy())

    def serve(self) -> None:
        while True:
            head = self._receive(NONCE + LENGTH.size)
            (size,) = LENGTH.unpack(head[NONCE:])
            ending = self._run(self._receive(size).decode())
            self._channel.sendall(head[:NONCE] + ending)

    def _receive(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            part = self._channel.recv(size - len(received))
            if not part:
                os._exit(0)  # the rollout is over
            received += part
        return received

    def _run(self, code: str) -> bytes:
        self._count += 1
        # Opened for each call: earlier code may have closed or replaced it.
        stream = self._stream = open(1, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
        sys.stdout = sys.stderr = stream
        sys.stdin = open(0, closefd=False)
        ending = RAN
        try:
            try:
                self._execute(code, f"Cell {self._count}")
            except BaseException as error:  # noqa: BLE001  # SystemExit too
                if not (isinstance(error, SystemExit) and error.code in (None, 0)):
                    ending = RAISED
                    stream.write(explain(error))
            stream.flush()
            _flush_c()
        except BaseException:  # noqa: BLE001  # the code closed its output, or its exception cannot be printed
            ending = RAISED
        return ending

    def _execute(self, code: str, name: str) -> None:
        tree = ast.parse(code, name)
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            del tree.body[-1]
        exec(compile(tree, name, "exec", dont_inherit=True), self._names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), self._names)
            if value is not None:
                self._names["_"] = value
                self._stream.write(f"{value!r}\n")


class SeedsNumpy:
    """Seeds `numpy.random` when it is imported, so that it has the same state in all rollouts."""

    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name == "numpy.random" else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_seed(module: types.ModuleType) -> None:
                load(module)
                module.seed(0)
                sys.meta_path.remove(self)

            spec.loader.exec_module = load_and_seed  # type: ignore[method-assign]
        return spec


def explain(error: BaseException) -> str:
    """A traceback with only the code's own lines.

    Example: 'Traceback (most recent call last):\n  File "Cell 1", line 1, in <module>\n    1 / 0\n...'
    """
    found = traceback.TracebackException.from_exception(error, compact=True)
    seen: set[int] = set()
    waiting: list[traceback.TracebackException | None] = [found]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        mine = [frame for frame in one.stack if frame.filename.startswith("Cell ")]
        one.stack = traceback.StackSummary.from_list(mine[-FRAMES:])
        waiting += [one.__cause__, one.__context__]
    return "".join(found.format())


def _flush_c() -> None:
    """Flush the C library's own buffer, which holds what C code printed."""
    ctypes.CDLL(None).fflush(None)
