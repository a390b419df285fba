"""requests with a channel and a pipe -> interpreters at their other ends, each confined separately.

The trainer starts one fork server, with an environment built from scratch, and asks it for interpreters. A policy's
code never runs in it. An interpreter is a fork of it, so that starting one takes milliseconds and preloaded modules
are loaded once. When the trainer ends, for whatever reason, so does the fork server, and the kernel ends its
interpreters with it.
"""

import json
import os
import platform
import select
import signal
import socket
import sys
import tempfile

from . import confinement, executor


REMOVE = ("/bin/rm", "-rf", "--one-file-system", "--")


def main() -> None:
    """Serve until the trainer ends. The argument is the options, as JSON; `control` is the number of a socket."""
    options = json.loads(sys.argv[1])
    trainer = options["trainer"]
    # Through these two, the process inside learns that the trainer has ended, and reaches /proc, which it cannot see.
    options["trainer"] = os.pidfd_open(trainer)
    options["proc"] = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    if os.getppid() != trainer:
        return  # the trainer has already ended, and its id may have been reused
    options["first"] = os.getpid() * 577  # so that the fork servers of several processes use different users
    if options["level"] == "bubblewrap":
        enter_bubblewrap(options)
    ForkServer(options).serve()


def enter_bubblewrap(options: dict) -> None:
    """Restart in bubblewrap. Does not return."""
    as_root = os.getuid() == 0
    options["visible"] = confinement.visible_paths(options["home"])
    for name in ("control", "trainer", "proc"):
        os.set_inheritable(options[name], True)
    program = options["bubblewrap"]
    arguments = [program, *confinement.bubblewrap_options(options["visible"], as_root), "--", sys.executable]
    os.execv(program, [*arguments, *start_arguments(options["home"], "inside"), json.dumps(options)])


def inside() -> None:
    """In bubblewrap: serve until the trainer or bubblewrap ends."""
    confinement.end_with_parent()
    options = json.loads(sys.argv[1])
    for name in ("control", "trainer", "proc"):
        os.set_inheritable(options[name], False)
    ForkServer(options).serve()


def start_arguments(home: str, function: str) -> "list[str]":
    """Arguments with which a Python interpreter runs a function of this module."""
    code = f"import sys; sys.path[0] = {home!r}; from sandbox import fork_server; del sys.path[0]"
    return ["-s", "-B", "-c", f"{code}; fork_server.{function}()"]


class ForkServer:
    """Makes interpreters, and cleans up after them."""

    def __init__(self, options: dict):
        os.umask(0o022)  # another user must be able to pass through the folders that are made
        self._options = options
        self._control, self._trainer = socket.socket(fileno=options["control"]), options["trainer"]
        self._as_root = os.getuid() == 0
        self._made = options["first"]  # number of interpreters, which gives each its own user
        self._scratch: dict[int, str] = {}  # by process, its folder on the disk, if it has one
        self._to_remove: list[str] = []
        self._removing: set[int] = set()  # processes that remove such folders
        for module in options["preload"]:
            __import__(module)
        statm = os.open("self/statm", os.O_RDONLY, dir_fd=options["proc"])
        with open(statm) as file:
            options["baseline"] = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        # Before Linux 5.14, the limit on processes counts all of the user's processes, in any namespace.
        release = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in platform.release().split(".")[:2])
        options["counts_own"] = options["level"] != "process" and release >= (5, 14)
        self._ended, wake = os.pipe()
        os.set_blocking(self._ended, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)

    def serve(self) -> None:
        poll = select.poll()
        for file in (self._control.fileno(), self._trainer, self._ended):
            poll.register(file, select.POLLIN)
        alive = True
        while alive:
            for file, _ in poll.poll():
                if file == self._ended:
                    os.read(file, 4096)
                    self._clear_up()
                elif file == self._control.fileno():
                    alive = self._make()
                else:
                    alive = False
        for process in list(self._scratch):
            os.kill(process, signal.SIGKILL)  # not reaped yet, so the id has not been reused
        while self._scratch or self._removing:
            self._clear_up(wait=True)
        self._remove()
        while self._removing:
            self._clear_up(wait=True)

    def _clear_up(self, wait: bool = False) -> None:
        while self._scratch or self._removing:
            process, _ = os.waitpid(-1, 0 if wait else os.WNOHANG)
            if process == 0:
                break
            self._removing.discard(process)
            folder = self._scratch.pop(process, "")
            if folder:
                self._to_remove.append(folder)
            self._remove()

    def _remove(self) -> None:
        """Remove folders in separate processes: they may hold many nested files, and others wait for interpreters."""
        while self._to_remove:
            try:
                self._removing.add(os.posix_spawn(REMOVE[0], [*REMOVE, self._to_remove[-1]], {}))
            except OSError:
                return  # no process can be made now: try again when the next one ends
            self._to_remove.pop()

    def _make(self) -> bool:
        """Make one more interpreter. Returns False if the trainer has closed its end."""
        _, files, _, _ = socket.recv_fds(self._control, 1, 2)
        if not files:
            return False
        channel, output = socket.socket(fileno=files[0]), files[1]
        self._made += 1
        user = confinement.FIRST_USER + self._made % confinement.USERS if self._as_root else None
        try:
            self._fork(channel, output, user)
        except OSError as error:  # no process or folder can be made now; existing interpreters go on
            executor.say_failed(channel, error)
        channel.close()
        os.close(output)
        return True

    def _fork(self, channel: socket.socket, output: int, user: "int | None") -> None:
        folder = self._make_folder(user) if self._options["level"] == "process" else ""
        try:
            process = os.fork()
        except OSError:
            if folder:
                self._to_remove.append(folder)
            raise
        if process == 0:
            self._become_interpreter(channel, output, folder, user)
        self._scratch[process] = folder

    def _make_folder(self, user: "int | None") -> str:
        folder = tempfile.mkdtemp(prefix="a2tgpo-python-", dir=self._options["scratch"])
        if user is not None:
            os.chown(folder, user, user)
        return folder

    # ---- in the interpreter's process, or the one that waits for it

    def _become_interpreter(self, channel: socket.socket, output: int, folder: str, user: "int | None") -> None:
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            confinement.end_with_parent()
            confinement.be_first_to_end(self._options["proc"])
            if not folder:
                confinement.leave_namespaces(self._options["proc"], self._as_root)
            channel = take_files(channel, output)
            if not folder and os.fork() != 0:
                wait_for_child()
            executor.main(channel, self._options, folder, user)
        except BaseException as error:  # noqa: BLE001  # the waiting caller must be told
            executor.say_failed(channel, error)
        finally:
            os._exit(1)


def take_files(channel: socket.socket, output: int) -> socket.socket:
    """Keep no open files but an empty input, the pipe as output, and the channel."""
    nothing = os.open(os.devnull, os.O_RDWR)
    nothing, output, number = (_above(file) for file in (nothing, output, channel.detach()))
    for place, file in enumerate((nothing, output, output, number)):
        os.dup2(file, place, inheritable=place < executor.CHANNEL)
    os.closerange(executor.CHANNEL + 1, min(os.sysconf("SC_OPEN_MAX"), 1 << 16))
    return socket.socket(fileno=executor.CHANNEL)


def _above(file: int) -> int:
    """The same file under a number that none of the four files will take."""
    while file <= executor.CHANNEL:
        file = os.dup(file)
    return file


def wait_for_child() -> None:
    """Stay as the interpreter's parent, which the kernel watches, until the interpreter ends."""
    os.closerange(0, executor.CHANNEL + 1)
    os.waitpid(-1, 0)
    os._exit(0)
