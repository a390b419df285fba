"""requests with a channel and a pipe -> interpreters at their other ends, each in a jail of its own.

The trainer starts one nursery, with an environment made from nothing, and asks it for interpreters. Code of a policy
never runs in it. An interpreter is a fork of it, so that starting one is a matter of milliseconds and what is
preloaded is loaded once; under bubblewrap it is a process of its own. When the trainer ends, however it does, so does
the nursery, and the kernel ends its interpreters with it.
"""

import json
import os
import platform
import select
import signal
import socket
import sys
import tempfile

from . import cell, jail


REMOVE = ("/bin/rm", "-rf", "--one-file-system", "--")


def main() -> None:
    """Serve until the trainer ends. The words of the command line are the options, as JSON, and a control socket."""
    os.umask(0o022)  # another user passes through the folders that are made
    options = json.loads(sys.argv[1])
    control = socket.socket(fileno=int(sys.argv[2]))
    trainer = os.pidfd_open(options["trainer"])
    if os.getppid() != options["trainer"]:
        return  # it has ended already, and its id may be another's
    for module in options["preload"]:
        __import__(module)  # under bubblewrap to know how much memory it takes; interpreters load their own
    with open("/proc/self/statm") as file:
        options["baseline"] = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    as_root = os.getuid() == 0
    options["shown"] = shown_paths(options)
    # Before 5.14 a limit of processes counts all that the user has, wherever they are.
    release = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in platform.release().split(".")[:2])
    options["counts_own"] = options["level"] != "process" and release >= (5, 14)
    Nursery(options, control, trainer, as_root).serve()


class Nursery:
    """Makes interpreters, and clears up after them."""

    def __init__(self, options: dict, control: socket.socket, trainer: int, as_root: bool):
        self._options, self._control, self._trainer, self._as_root = options, control, trainer, as_root
        self._made = os.getpid() * 577  # so that the nurseries of several processes use different users
        self._scratch: dict[int, str] = {}  # by process, the folder on the disk that it has, if any
        self._to_remove: list[str] = []
        self._removing: set[int] = set()  # processes that remove such folders
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
            os.kill(process, signal.SIGKILL)  # not reaped yet, so the id is still its own
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
        """Folders may hold many files, in folders however deep, and others wait for interpreters."""
        while self._to_remove:
            try:
                self._removing.add(os.posix_spawn(REMOVE[0], [*REMOVE, self._to_remove[-1]], {}))
            except OSError:
                return  # no process can be made just now: when the next one ends
            self._to_remove.pop()

    def _make(self) -> bool:
        """One more interpreter, or False if there is nobody to make it for."""
        _, files, _, _ = socket.recv_fds(self._control, 1, 2)
        if not files:
            return False
        channel, output = socket.socket(fileno=files[0]), files[1]
        self._made += 1
        user = jail.FIRST_USER + self._made % jail.USERS if self._as_root else None
        try:
            self._start(channel, output, user)
        except OSError as error:  # no process or no folder can be made just now; those that there are go on
            cell.say_failed(channel, error)
        channel.close()
        os.close(output)
        return True

    def _start(self, channel: socket.socket, output: int, user: "int | None") -> None:
        level = self._options["level"]
        folder = self._make_scratch(user) if level == "process" else ""
        if level == "bubblewrap":
            process = self._bubblewrap(channel, output, user)
        else:
            process = self._fork(folder)
            if process == 0:
                self._become_interpreter(channel, output, folder, user)
        self._scratch[process] = folder

    def _fork(self, folder: str) -> int:
        try:
            return os.fork()
        except OSError:
            if folder:
                self._to_remove.append(folder)
            raise

    def _make_scratch(self, user: "int | None") -> str:
        folder = tempfile.mkdtemp(prefix="a2tgpo-python-", dir=self._options["scratch"])
        if user is not None:
            os.chown(folder, user, user)
        return folder

    # ---- in the interpreter's process, or the one that waits for it

    def _become_interpreter(self, channel: socket.socket, output: int, folder: str, user: "int | None") -> None:
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            channel = take_files(channel, output)
            jail.end_with_parent()
            jail.be_first_to_end()
            if folder == "":
                self._leave()
                folder = jail.SCRATCH
                if os.fork() != 0:
                    wait_for_child()
                cell.main(channel, self._options, folder, user, own_mounts=True)
            cell.main(channel, self._options, folder, user, own_mounts=False)
        except BaseException as error:  # noqa: BLE001  # whoever waits for it must hear of it
            cell.say_failed(channel, error)
        finally:
            os._exit(1)

    def _leave(self) -> None:
        jail.leave(self._as_root)
        jail.build_root(platform.machine(), self._options["shown"])

    def _bubblewrap(self, channel: socket.socket, output: int, user: "int | None") -> int:
        options = {**self._options, "user": user}
        words = [self._options["bubblewrap"], *bubblewrap_words(options, self._as_root)]
        words += [sys.executable, *start_words(self._options["home"], "inside"), json.dumps(options)]
        process = os.fork()
        if process == 0:
            try:
                signal.set_wakeup_fd(-1)
                channel = take_files(channel, output, inheritable=True)
                jail.end_with_parent()
                jail.be_first_to_end()
                os.execv(words[0], words)
            except BaseException as error:  # noqa: BLE001  # whoever waits for it must hear of it
                cell.say_failed(channel, error)
            finally:
                os._exit(1)
        return process


def take_files(channel: socket.socket, output: int, inheritable: bool = False) -> socket.socket:
    """Nothing as input, the pipe as output, the channel, and no other open file."""
    nothing = os.open(os.devnull, os.O_RDWR)
    nothing, output, number = (_above(file) for file in (nothing, output, channel.detach()))
    for place, file in enumerate((nothing, output, output, number)):
        os.dup2(file, place, inheritable=place < cell.CHANNEL or inheritable)
    os.closerange(cell.CHANNEL + 1, min(os.sysconf("SC_OPEN_MAX"), 1 << 16))
    return socket.socket(fileno=cell.CHANNEL)


def _above(file: int) -> int:
    """The same file under a number that none of the four will take."""
    while file <= cell.CHANNEL:
        file = os.dup(file)
    return file


def wait_for_child() -> None:
    """Keep the place of the interpreter's parent, which the kernel watches, until it ends."""
    os.closerange(0, cell.CHANNEL + 1)
    os.waitpid(-1, 0)
    os._exit(0)


def start_words(home: str, function: str) -> "list[str]":
    """Words for an interpreter to be what a function of this module makes of it."""
    code = f"import sys; sys.path[0] = {home!r}; from sandbox import nursery; del sys.path[0]; nursery.{function}()"
    return ["-s", "-B", "-c", code]


def shown_paths(options: dict) -> "list[str]":
    """What an interpreter sees of the machine: itself, its libraries, and what the loader of libraries reads."""
    paths = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo"]
    paths += ["/etc/ld.so.cache", "/etc/alternatives"]
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix} - {"/usr", "/usr/local"}
    # Not all of them: beside these lie settings, such as a pip.conf with the password of an index, or bin/activate.
    parts = ("lib", "lib64", "share/zoneinfo", "pyvenv.cfg")
    paths += [os.path.join(prefix, part) for prefix in prefixes for part in parts]
    paths += [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    if options["level"] == "bubblewrap":  # where it is started anew
        paths.append(os.path.join(options["home"], "sandbox"))
        program = sys.executable
        paths.append(program)
        while os.path.islink(program):
            program = os.path.normpath(os.path.join(os.path.dirname(program), os.readlink(program)))
            paths.append(program)
    shown: list[str] = []
    for path in sorted(set(paths), key=len):  # a folder before what is in it
        if os.path.exists(path) and not any(path.startswith(f"{one}/") for one in shown):
            shown.append(path)
    return shown


def bubblewrap_words(options: dict, as_root: bool) -> "list[str]":
    """Options of bubblewrap: namespaces, and a root with what is shown. The interpreter does the rest itself, for
    which it needs capabilities that it then gives up."""
    words = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    # Its own first process stays, of the same user as the one that waits for it: the death of that one reaches it, as
    # it would not reach a process of another user, and takes all the others along.
    words += ["--die-with-parent", "--new-session", "--hostname", jail.NAME.decode()]
    if not as_root:
        words += ["--unshare-user", "--uid", str(jail.INSIDE), "--gid", str(jail.INSIDE)]
    for name in ("SYS_ADMIN", "SETPCAP", *(("SETUID", "SETGID") if as_root else ())):
        words += ["--cap-add", f"CAP_{name}"]
    devices = [f"/dev/{name}" for name in jail.DEVICES]
    for folder in dict.fromkeys(one for path in (*options["shown"], *devices) for one in parents(path)):
        words += ["--dir", folder]  # which would otherwise be closed to all but root
    for path in options["shown"]:
        words += ["--ro-bind", os.path.realpath(path), path]
    for path in devices:
        words += ["--dev-bind", path, path]
    return [*words, "--dir", jail.SCRATCH, "--dir", jail.NEXT_SCRATCH, "--"]


def parents(path: str) -> "list[str]":
    """Example: "/usr/local/lib" -> ["/usr", "/usr/local"]"""
    parts = path.split("/")[1:-1]
    return ["/" + "/".join(parts[: i + 1]) for i in range(len(parts))]


def inside() -> None:
    """In bubblewrap: be an interpreter."""
    options = json.loads(sys.argv[1])
    cell.main(socket.socket(fileno=cell.CHANNEL), options, jail.SCRATCH, options["user"], own_mounts=True)
