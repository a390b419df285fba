"""code and a time limit -> the result from a confined interpreter: text of a bounded length, and how it ended.

The trainer's end of an interpreter. It trusts nothing that the interpreter sends: output is cut while it is read, the
message that a call is done has a fixed length and must hold the call's own random bytes, and anything else that
arrives ends the interpreter. Between calls the interpreter is stopped, with all its threads.
"""

import os
import secrets
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from .sandbox.executor import FAILED, LENGTH, NONCE, RAISED, RAN, READY


STARTING = 60.0  # seconds that an interpreter may take to be ready: preloading may be slow
FLOOD = 16  # an interpreter is ended once it has printed this many times the output that is kept ...
LEAST_FLOOD = 2**22  # ... and this many bytes
BLOCK = 2**16
MOST_IN_PIPE = 2**20

# What the policy is told when its interpreter ends.
LATE = "the code did not end within {:g} seconds"
FLOODED = "the code printed more than {} bytes"
GONE = "the code ended its interpreter, or memory ran out"
KILLED = "it was ended between two calls"
BROKEN = "the code wrote to the interpreter's own channel, which only signals that a call is done"


class NotStarted(RuntimeError):
    """An interpreter could not be made, for the given reason."""


class Finished(NamedTuple):
    """How a call ended. `ended` says why the interpreter has ended, if it has."""

    text: str
    raised: bool
    ended: str | None = None


class Output:
    """The first and the last bytes of the output; the bytes between are only counted."""

    def __init__(self, most: int):
        self._half = most // 2
        self._head, self._tail = bytearray(), bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        del self._tail[: -self._half]

    def text(self) -> str:
        """Example: of 12 bytes, 8 of which are kept -> "0123\n[4 bytes left out]\n89AB" """
        left_out = self.total - len(self._head) - len(self._tail)
        if not left_out:
            return _decoded(self._head + self._tail)
        return f"{_decoded(self._head)}\n[{left_out} bytes left out]\n{_decoded(self._tail)}"


def _decoded(data: bytes | bytearray) -> str:
    return data.decode("utf-8", errors="replace")


class _Ended(Exception):
    """An interpreter has ended or must be ended, for the given reason."""


def _check_before(channel: socket.socket) -> None:
    """Raise `_Ended` if something arrived since the last call, or the interpreter has ended."""
    channel.settimeout(0)
    try:
        raise _Ended(BROKEN if channel.recv(1) else KILLED)
    except BlockingIOError:
        pass  # as expected
    except OSError as error:
        raise _Ended(KILLED) from error


class Handles:
    """The trainer's open files of one interpreter."""

    def __init__(self, channel: socket.socket, output: int):
        self.channel, self.output = channel, output
        self.process = -1  # a file that always refers to this process, even if its id is reused
        self._lock = threading.Lock()
        self._owner = os.getpid()  # a fork of the trainer has the same files, and must not end the interpreter

    def send(self, number: int) -> None:
        """Send a signal, if the process still exists."""
        with self._lock, suppress(ProcessLookupError):
            if self.process >= 0:
                signal.pidfd_send_signal(self.process, number)

    def kill(self) -> None:
        """From any thread: end the interpreter immediately. A waiting caller is told by the end of the channel."""
        if os.getpid() != self._owner:
            return
        self.send(signal.SIGKILL)
        with suppress(OSError):  # it was closed at either end
            self.channel.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.kill()
        with self._lock:
            self.channel.close()
            for file in (self.output, self.process):
                if file >= 0:
                    os.close(file)
            self.output = self.process = -1


class Interpreter:
    """One interpreter, for one rollout. It ends when this object is deleted."""

    def __init__(self, channel: socket.socket, output: int, kept: int, server_has_ended: Callable[[], bool]):
        self._handles, self._kept, self.server_has_ended = Handles(channel, output), kept, server_has_ended
        os.set_blocking(output, False)
        self.kill = self._handles.kill
        self.close = weakref.finalize(self, self._handles.close)

    def wait_until_ready(self) -> None:
        """Wait until the interpreter is ready. Raises `NotStarted` with the error that the other end reports."""
        handles = self._handles
        handles.channel.settimeout(STARTING)
        try:
            message, files, _, _ = socket.recv_fds(handles.channel, 4096, 1)
        except OSError as error:
            raise NotStarted(f"it was not ready within {STARTING:g} seconds ({error})") from error
        if message == READY and not files:  # the kernel drops a file when no file number is free
            raise NotStarted("this process has reached its limit of open files (ulimit -n)")
        if message != READY:
            said = _decoded(message.removeprefix(FAILED)) or _decoded(self._read_rest(Output(self._kept)))
            raise NotStarted(said.strip() or "it ended before it was ready")
        handles.process = files[0]

    def run(self, code: str, timeout: float) -> Finished:
        """Run code, for at most `timeout` seconds. If the result has `ended`, the interpreter is gone."""
        output = Output(self._kept)
        self._read_rest(Output(0))  # discards what a thread of the previous call printed after its end
        try:
            raised = self._call(code, timeout, output)
        except TimeoutError:
            return self._end(output, LATE.format(timeout))
        except OSError:  # the interpreter ended before it got the code
            return self._end(output, GONE)
        except _Ended as ended:
            return self._end(output, str(ended))
        self._handles.send(signal.SIGSTOP)
        self._read_rest(output)
        return Finished(output.text(), raised)

    def _call(self, code: str, timeout: float, output: Output) -> bool:
        """Have the code run, wait until it is done, and return whether it raised."""
        end = time.monotonic() + timeout
        data = code.encode("utf-8", errors="replace")
        nonce = secrets.token_bytes(NONCE)
        _check_before(self._handles.channel)
        self._handles.send(signal.SIGCONT)
        self._handles.channel.settimeout(timeout)
        self._handles.channel.sendall(nonce + LENGTH.pack(len(data)) + data)
        return self._wait(nonce, output, end) == RAISED

    def _wait(self, nonce: bytes, output: Output, end: float) -> bytes:
        """Return how the call ended, while reading and cutting its output."""
        channel, most = self._handles.channel, max(FLOOD * self._kept, LEAST_FLOOD)
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        poll.register(self._handles.output, select.POLLIN)
        received = b""
        while (left := end - time.monotonic()) > 0:
            ready = [file for file, _ in poll.poll(left * 1000)]
            if self._handles.output in ready:
                data = os.read(self._handles.output, BLOCK)
                output.add(data)
                if not data:
                    poll.unregister(self._handles.output)  # the code closed it
                if output.total > most:
                    raise _Ended(FLOODED.format(most))
            if channel.fileno() in ready:
                data = channel.recv(NONCE + 2)
                received += data
                if not data:
                    raise _Ended(GONE)
                if received in (nonce + RAN, nonce + RAISED):
                    return received[NONCE:]
                if not nonce.startswith(received):
                    raise _Ended(BROKEN)
        raise TimeoutError

    def _end(self, output: Output, why: str) -> Finished:
        self._handles.send(signal.SIGKILL)
        self._read_rest(output)
        self.close()
        return Finished(output.text(), True, why)

    def _read_rest(self, output: Output) -> bytes:
        """Read what is in the pipe now, up to its capacity: another thread may keep filling it."""
        first = b""
        with suppress(BlockingIOError):
            for _ in range(MOST_IN_PIPE // BLOCK):
                data = os.read(self._handles.output, BLOCK)
                output.add(data)
                first = first or data
                if not data:
                    break
        return first
