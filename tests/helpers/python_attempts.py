"""What code may try against the Python tool: a name, the threat it belongs to, the code, and how success is known.

Code calls `tell(...)` when it got what it wanted; if that can be seen from outside, `seen` looks there instead.
The names in capitals are set by the test: a victim process of the user who trains, files, sockets, folders.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from a2tgpo_trl.tools.python import CodeFailed


PRELUDE = """
import ctypes, os, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def tell(what=""):
    print("ESC" + "APED", str(what)[:300])
def read(path):
    with open(path, "rb") as file:
        print(file.read(100_000).decode(errors="replace"))
def call(number, *words):
    return libc.syscall(ctypes.c_long(number), *(w if not isinstance(w, int) else ctypes.c_long(w) for w in words))
"""


# The first page of a library, which all processes share.
PAGE = """
libc.mmap.restype = ctypes.c_void_p
file = open(os.__file__, "rb")
at = ctypes.c_void_p(libc.mmap(None, ctypes.c_size_t(4096), 1, 1, file.fileno(), ctypes.c_long(0)))
"""


@dataclass(frozen=True)
class Attempt:
    name: str
    threat: str
    code: str
    seen: Callable[[Any, Any], bool] | None = None
    timeout: float = 3.0
    # Whether it may fail even at a level that does not stop it, depending on the kernel or the owner of the files.
    may_fail: bool = False
    machine: str | None = None  # the processor whose system call numbers it uses


def has_secret(world, found) -> bool:
    return world.secret in found.text


def victim_ended(world, found) -> bool:
    return world.victim.poll() is not None or not world.server_lives()


def made(name: str) -> Callable[[Any, Any], bool]:
    return lambda world, found: (world.open_folder / name).exists()


def more_processes(world, found) -> bool:
    return world.processes() > world.processes_before


def still_runs(world, found) -> bool:
    return not world.gone()


def too_long(world, found) -> bool:
    found.text.encode("utf-8")  # raises if it is not text
    return len(found.text) > world.max_output + 100 or len(found.text) < 10


def next_call_is_wrong(world, found) -> bool:
    """Whether anything but its own code answers the rollout's next call."""
    try:
        answer = world.session.run("6 * 7")
    except CodeFailed as lost:  # an interpreter that its code has broken is not reused, and the text says so
        if "its variables are gone" not in str(lost):
            return True
        answer = world.session.run("6 * 7")
    return answer.splitlines()[-1] != "42"


def found_by_next(code: str) -> Callable[[Any, Any], bool]:
    """Whether the next rollout's code finds something."""
    return lambda world, found: "FOUND" in world.fresh_text(f"print('FO' + 'UND' if ({code}) else 'clean')")


def heard_by_other(code: str) -> Callable[[Any, Any], bool]:
    """Whether another rollout's code learns what this one's does while this one's interpreter lives."""
    return lambda world, found: "ESCAPED" in heard(world, f"{PRELUDE}\nimport fcntl\n{code}")


def heard(world, code: str) -> str:
    """What another rollout's code prints, whether or not it raises."""
    try:
        return world.fresh_text(code)
    except CodeFailed as failed:
        return str(failed)


def is_woken(world, found) -> bool:
    """Whether another rollout's code wakes this rollout's waiting code."""
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(world.session.run, "wait()")
        time.sleep(0.2)
        world.fresh_text(f"{PRELUDE}\n{PAGE}\ncall(202, at, 1, 9, 0, 0, 0)")
        return "ESCAPED" in waiting.result()


def hears_other(then: str) -> Callable[[Any, Any], bool]:
    """Whether this rollout's code learns that another rollout's has opened a file of the library."""

    def hears(world, found) -> bool:
        if found.raised:
            return False
        world.fresh_text("open(__import__('os').__file__).read(10)")
        try:
            return "ESCAPED" in world.session.run(then)
        except CodeFailed:
            return False

    return hears


ENVIRONMENT = [
    Attempt("os.environ", "environment", "print(dict(os.environ))", has_secret),
    Attempt(
        "getenv of the C library",
        "environment",
        "libc.getenv.restype = ctypes.c_char_p\nprint(libc.getenv(b'HF_TOKEN'), libc.getenv(b'WANDB_API_KEY'))",
        has_secret,
    ),
    Attempt("its own /proc/self/environ", "environment", "read('/proc/self/environ')", has_secret),
    Attempt("/proc/<ppid>/environ", "environment", "read(f'/proc/{os.getppid()}/environ')", has_secret),
    Attempt("/proc/1/environ", "environment", "read('/proc/1/environ')", has_secret),
    Attempt(
        "the environment of the trainer",
        "other environments",
        "for pid in (TRAINER, VICTIM):\n    try: read(f'/proc/{pid}/environ')\n    except OSError as e: print(e)",
        has_secret,
    ),
    Attempt(
        "all environments there are",
        "other environments",
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try:\n"
        "        text = open(f'/proc/{pid}/environ').read()\n"
        "        if 'HF_TOKEN' in text: print(text)\n"
        "    except OSError: pass",
        has_secret,
    ),
    Attempt(
        "which processes there are",
        "processes",
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    if int(pid) == VICTIM: tell(open(f'/proc/{pid}/cmdline').read())",
    ),
    Attempt(
        "processes by their numbers",
        "processes",
        "",
        heard_by_other(
            "for pid in range(2, 100_000):\n"
            "    try:\n        os.getpgid(pid)\n        tell(pid)\n        break\n"
            "    except OSError: pass"
        ),
    ),
]

MEMORY_OF_OTHERS = [
    Attempt(
        "/proc/<victim>/mem",
        "memory of others",
        "with open(f'/proc/{VICTIM}/mem', 'rb', 0) as file:\n    file.seek(ADDRESS)\n    print(file.read(64))",
        has_secret,
        may_fail=True,
    ),
    Attempt(
        "writing /proc/<ppid>/mem",
        "memory of others",
        "with open(f'/proc/{os.getppid()}/mem', 'r+b', 0) as file:\n    tell(file)",
        may_fail=True,
    ),
    Attempt(
        "process_vm_readv of the victim",
        "calls on others",
        "class V(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]\n"
        "here = ctypes.create_string_buffer(64)\n"
        "a, b = V(ctypes.addressof(here), 64), V(ADDRESS, 64)\n"
        "libc.process_vm_readv(VICTIM, ctypes.byref(a), 1, ctypes.byref(b), 1, 0)\nprint(here.raw)",
        has_secret,
    ),
    Attempt(
        "ptrace of the victim",
        "calls on others",
        "print(libc.ptrace(0x4206, VICTIM, None, None))\ntime.sleep(0.1)",
        lambda world, found: "TracerPid:\t0" not in world.victim_status(),
    ),
    Attempt(
        "taking an open file of the victim",
        "calls on others",
        "pidfd = call(434, VICTIM, 0)\nfd = call(438, pidfd, 0, 0)\nif fd >= 0: tell(fd)",
    ),
    Attempt(
        "the processors of the victim",
        "calls on others",
        "os.sched_setaffinity(VICTIM, {min(os.sched_getaffinity(VICTIM))})",
        lambda world, found: world.victim_affinity_changed(),
    ),
    Attempt(
        "the scheduling of the victim",
        "calls on others",
        "for give in (lambda: os.sched_setscheduler(VICTIM, os.SCHED_IDLE, os.sched_param(0)),\n"
        "             lambda: os.sched_setparam(VICTIM, os.sched_param(0))):\n"
        "    try:\n        give()\n        tell()\n    except OSError as error: print(error)",
    ),
    Attempt(
        "memory of others by its number",
        "calls on others",
        "libc.shmat.restype = ctypes.c_long\n"
        "if libc.shmat(0, None, 0o10000) != -1: tell()\nprint(os.strerror(ctypes.get_errno()))\n"
        "if ctypes.get_errno() not in (1, 13): tell('not refused')",
    ),
    Attempt(
        "files that it inherited",
        "calls on others",
        "for fd in range(1024):\n"
        "    try:\n"
        "        kind = os.fstat(fd)\n"
        "        if fd > 3 or os.path.isdir(fd): tell(fd)\n"
        "    except OSError: pass",
    ),
]

FILES = [
    Attempt("/etc/shadow", "private files", "read('/etc/shadow')", lambda world, found: "root:" in found.text),
    Attempt("a file of root", "private files", "read(PRIVATE)", has_secret),
    Attempt("a file of the user who trains", "own files", "read(OWN)", has_secret),
    Attempt("a file that all may read", "files of others", "read(PUBLIC)", has_secret),
    Attempt("/etc/passwd", "files of others", "read('/etc/passwd')", lambda world, found: "root:" in found.text),
    Attempt("path traversal", "files of others", "read('../' * 30 + PUBLIC)", has_secret),
    Attempt("a link out of the scratch folder", "files of others", "os.symlink(PUBLIC, 'x')\nread('x')", has_secret),
    Attempt("a link to a file of root", "private files", "os.symlink(PRIVATE, 'x')\nread('x')", has_secret),
    Attempt("a hard link", "private files", "os.link(PRIVATE, 'x')\nread('x')", has_secret),
    Attempt(
        "a hard link by way of /proc", "private files", "os.link('/proc/1/root' + PRIVATE, 'x')\nread('x')", has_secret
    ),
    Attempt("the root of the first process", "private files", "read('/proc/1/root' + PRIVATE)", has_secret),
    Attempt(
        "what is in the home folder",
        "own files",
        "print(os.listdir(HOME_FOLDER))",
        lambda world, found: "keys" in found.text,
    ),
    Attempt(
        "this repository",
        "files of others",
        "print(open(REPOSITORY + '/setup.cfg').read())",
        lambda world, found: "a2tgpo_trl" in found.text.partition("Traceback")[0],
    ),
    Attempt(
        "the disk itself",
        "private files",
        "for name in ('vda', 'sda', 'nvme0n1', 'mem', 'kmsg'):\n"
        "    try: tell(os.open(f'/dev/{name}', os.O_RDONLY))\n"
        "    except OSError as error: print(error)",
    ),
    Attempt(
        "a device that it makes",
        "private files",
        "os.mknod('disk', 0o60666, os.makedev(254, 0))\ntell(os.open('disk', os.O_RDONLY))",
    ),
    Attempt(
        "open_by_handle_at",
        "private files",
        "handle = struct.pack('IiII', 8, 1, 2, 0)\n"
        "fd = call(304, os.open('/', 0), ctypes.create_string_buffer(handle), 0)\nif fd >= 0: tell(fd)",
        machine="x86_64",
    ),
    Attempt(
        "a module in site-packages",
        "writing",
        "open(SITE + '/evil.py', 'w').write('1')",
        lambda world, found: (world.site / "evil.py").exists(),
        may_fail=True,
    ),
    Attempt(
        "a module in the package",
        "writing",
        "open(PACKAGE + '/evil.py', 'w').write('1')",
        lambda world, found: (world.package / "evil.py").exists(),
        may_fail=True,
    ),
    Attempt(
        "rights of the standard library",
        "writing",
        "before = os.stat(os.__file__).st_mode\n"
        "try: os.chmod(os.__file__, 0o777)\nfinally:\n    if os.stat(os.__file__).st_mode != before: tell()",
        may_fail=True,
    ),
    Attempt(
        "a file that the user who trains may change",
        "writing",
        "open(OWN, 'a').write(' and more')",
        lambda world, found: world.own_file_changed(),
    ),
    Attempt("the interpreter's program", "writing", "tell(os.open(sys.executable, os.O_WRONLY))", may_fail=True),
    Attempt("a folder that all may write to", "traces", "open(OPEN + '/trace', 'w').write('1')", made("trace")),
    Attempt(
        "/tmp",
        "traces",
        "open('/tmp/a2tgpo-trace', 'w').write('1')",
        found_by_next("__import__('os').path.exists('/tmp/a2tgpo-trace')"),
    ),
    Attempt(
        "/dev/shm",
        "traces",
        "open('/dev/shm/a2tgpo-trace', 'w').write('1')",
        found_by_next("__import__('os').path.exists('/dev/shm/a2tgpo-trace')"),
    ),
    Attempt(
        "a file in the scratch folder",
        "next rollout",
        "open('trace', 'w').write('1')",
        found_by_next("__import__('os').path.exists('trace')"),
    ),
]

LOCK = "import fcntl\nfile = open(os.__file__, 'rb')\n"
TELLING = [
    Attempt(
        "a lock of a whole file",
        "telling",
        f"{LOCK}fcntl.flock(file, fcntl.LOCK_EX)",
        heard_by_other(
            "try: fcntl.flock(open(os.__file__, 'rb'), fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept BlockingIOError: tell()"
        ),
    ),
    Attempt(
        "a lock of bytes, of the process",
        "telling",
        f"{LOCK}fcntl.lockf(file, fcntl.LOCK_SH, 1, 7)",
        heard_by_other(
            "held = fcntl.fcntl(open(os.__file__, 'rb'), fcntl.F_GETLK, struct.pack('hhqqi4x', 1, 0, 7, 1, 0))\n"
            "if struct.unpack('hhqqi4x', held)[0] != fcntl.F_UNLCK: tell(held)"
        ),
    ),
    Attempt(
        "a lock of bytes, of the open file",
        "telling",
        f"{LOCK}fcntl.fcntl(file, 37, struct.pack('hhqqi4x', 0, 0, 7, 1, 0))",
        heard_by_other(
            "held = fcntl.fcntl(open(os.__file__, 'rb'), 36, struct.pack('hhqqi4x', 1, 0, 7, 1, 0))\n"
            "if struct.unpack('hhqqi4x', held)[0] != fcntl.F_UNLCK: tell(held)"
        ),
    ),
    Attempt("a lease", "telling", f"{LOCK}fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)\ntell()"),
    Attempt(
        "a signal when a folder changes",
        "telling",
        "import fcntl\nfcntl.fcntl(os.open(os.path.dirname(os.__file__), 0), fcntl.F_NOTIFY, 1)\ntell()",
    ),
    Attempt(
        "a watch of a library",
        "telling",
        "fd = libc.inotify_init1(0o4000)\nif fd < 0: raise OSError\n"
        "if libc.inotify_add_watch(fd, os.__file__.encode(), 0x20) < 0: raise OSError",
        hears_other("tell(os.read(fd, 4096))"),
    ),
    Attempt("fanotify", "telling", "if libc.fanotify_init(0x200, 0) >= 0: tell()"),
    Attempt(
        "a wait on a page of a library",
        "telling",
        f"{PAGE}\nword = int.from_bytes(open(os.__file__, 'rb').read(4), 'little')\n"
        "def wait():\n"
        "    second = ctypes.create_string_buffer(struct.pack('qq', 1, 0))\n"
        "    if call(202, at, 0, word, second, 0, 0) == 0: tell('woken')",
        is_woken,
        machine="x86_64",
    ),
    Attempt(
        "what is in memory of a library",
        "telling",
        "file = open(os.__file__, 'rb')\n"
        "whole, found = ctypes.create_string_buffer(16), ctypes.create_string_buffer(40)\n"
        "if call(451, file.fileno(), whole, found, 0) == 0: tell(found.raw)",
    ),
]

SIGNALS = [
    Attempt("kill of the victim", "signals", "os.kill(VICTIM, signal.SIGKILL)", victim_ended),
    Attempt("kill of the parent", "signals", "os.kill(os.getppid(), signal.SIGKILL)", victim_ended),
    Attempt("kill of all", "signals", "os.kill(-1, signal.SIGKILL)", victim_ended),
    Attempt("kill of its group", "signals", "os.killpg(os.getpgid(0), signal.SIGKILL)", victim_ended),
    Attempt(
        "a signal to the trainer",
        "signals",
        "os.kill(TRAINER, signal.SIGUSR1)",
        lambda world, found: bool(world.signals),
    ),
    Attempt("tgkill", "signals", "print(libc.tgkill(VICTIM, VICTIM, 9))", victim_ended),
    Attempt(
        "a queued signal",
        "signals",
        "info = ctypes.create_string_buffer(struct.pack('iii', 9, 0, -1), 128)\nprint(call(129, VICTIM, 9, info))",
        victim_ended,
        machine="x86_64",
    ),
    Attempt(
        "a signal by a file of the process",
        "signals",
        "fd = call(434, VICTIM, 0)\nprint(call(424, fd, 9, 0, 0))",
        victim_ended,
    ),
    Attempt(
        "a signal by way of a pipe",
        "signals",
        "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, 8, VICTIM)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')\ntime.sleep(0.1)",
        victim_ended,
    ),
    Attempt(
        "the priority of the victim",
        "signals",
        "os.setpriority(os.PRIO_PROCESS, VICTIM, 19)",
        lambda world, found: world.victim_nice() == 19,
    ),
    Attempt(
        "the limits of the victim",
        "signals",
        "import resource\nresource.prlimit(VICTIM, resource.RLIMIT_NOFILE, (5, 5))",
        lambda world, found: world.victim_files() == 5,
    ),
]

NETWORK = [
    Attempt(
        "tcp",
        "network",
        "socket.create_connection(('127.0.0.1', TCP), 1).sendall(b'x')",
        lambda world, found: world.reached("tcp"),
    ),
    Attempt(
        "udp",
        "network",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP))",
        lambda world, found: world.reached("udp"),
    ),
    Attempt(
        "a query to a name server",
        "network",
        "query = b'\\1\\2\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\7example\\3com\\0\\0\\1\\0\\1'\n"
        "try: print(socket.getaddrinfo('example.com', 80))\nexcept OSError as error: print(error)\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(query, ('127.0.0.1', UDP))",
        lambda world, found: world.reached("udp"),
    ),
    Attempt(
        "a socket file",
        "network",
        "socket.socket(socket.AF_UNIX).connect(UNIX)",
        lambda world, found: world.reached("unix"),
    ),
    Attempt(
        "an abstract socket",
        "network",
        "socket.socket(socket.AF_UNIX).connect('\\0' + ABSTRACT)",
        lambda world, found: world.reached("abstract"),
    ),
    Attempt(
        "a pair connected elsewhere",
        "network",
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.connect('\\0' + ABSTRACT)",
        lambda world, found: world.reached("abstract"),
    ),
    Attempt(
        "a datagram of a pair",
        "network",
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b'x', '\\0' + ABSTRACT + '-datagrams')",
        lambda world, found: world.reached("abstract datagrams"),
    ),
    Attempt(
        "a name for one of a pair of sockets",
        "network",
        "for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM):\n"
        "    try:\n"
        "        a, b = socket.socketpair(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)\n"
        "        a.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)\n"
        "        a.send(b'x')\n"
        "        if a.getsockname(): tell(a.getsockname())\n"
        "    except OSError as error: print(error)",
    ),
    Attempt("netlink", "network", "tell(socket.socket(16, socket.SOCK_RAW, 0))"),
    Attempt("raw packets", "network", "tell(socket.socket(17, socket.SOCK_RAW, 0))"),
    Attempt("vsock", "network", "tell(socket.socket(40, socket.SOCK_STREAM))"),
    Attempt("a server of its own", "network", "s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\ntell(s)"),
    Attempt(
        "a page by urllib",
        "network",
        "import urllib.request\nurllib.request.urlopen(f'http://127.0.0.1:{TCP}', timeout=1)",
        lambda world, found: world.reached("tcp"),
    ),
]

PROGRAMS = [
    Attempt(
        "a fork bomb",
        "programs",
        "for _ in range(50):\n    try:\n        if os.fork() == 0: time.sleep(60)\n    except OSError as e: print(e)",
        more_processes,
    ),
    Attempt(
        "a grandchild in a session of its own",
        "programs",
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)",
        more_processes,
    ),
    Attempt(
        "a raw clone",
        "programs",
        "if call(56, 17, 0, 0, 0, 0) == 0:\n    time.sleep(60)",
        more_processes,
        machine="x86_64",
    ),
    Attempt(
        "clone3",
        "programs",
        "words = ctypes.create_string_buffer(struct.pack('11Q', 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0))\n"
        "if call(435, words, 88) == 0:\n    time.sleep(60)",
        more_processes,
    ),
    Attempt("vfork", "programs", "if call(58) == 0:\n    time.sleep(60)", more_processes, machine="x86_64"),
    Attempt(
        "multiprocessing",
        "programs",
        "import multiprocessing\nmultiprocessing.Process(target=time.sleep, args=(60,)).start()",
        more_processes,
    ),
    Attempt(
        "a shell",
        "programs",
        "import subprocess\nprint(subprocess.run('echo $((40+2))x', shell=True, "
        "capture_output=True, text=True).stdout)",
        lambda world, found: "42x" in found.text,
    ),
    Attempt("os.system", "programs", "print(os.system('echo $((40+2))x'))", lambda world, found: "42x" in found.text),
    Attempt("exec of another program", "programs", "os.execv('/bin/echo', ['echo', 'ESC' 'APED'])"),
    Attempt(
        "exec of the interpreter",
        "programs",
        "os.execv(sys.executable, [sys.executable, '-c', 'print(\"ESC\" + \"APED\")'])",
    ),
    Attempt(
        "exec of a file in memory",
        "programs",
        "fd = os.memfd_create('x')\nos.write(fd, open(sys.executable, 'rb').read())\n"
        "os.execve(fd, ['python', '-c', 'print(\"ESC\" + \"APED\")'], {})",
    ),
    Attempt("posix_spawn", "programs", "os.posix_spawn('/bin/echo', ['echo', 'ESC' 'APED'], {})"),
    Attempt(
        "a thread bomb",
        "threads",
        "made = 0\n"
        "try:\n"
        "    threading.stack_size(65536)\n"
        "    for _ in range(400):\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "        made += 1\n"
        "finally:\n"
        "    if made > 30: tell(made)",
    ),
]

BOUNDS = [
    Attempt(
        "a list that grows",
        "memory",
        "held = []\nfor _ in range(400):\n    held.append(bytearray(b'x') * 2**20)\ntell(len(held))",
    ),
    Attempt("one large block", "memory", "held = b'x' * 2**29\ntell(len(held))"),
    Attempt("anonymous memory", "memory", "import mmap\nheld = mmap.mmap(-1, 2**29)\ntell(len(held))"),
    Attempt(
        "a file in memory", "memory", "fd = os.memfd_create('x')\nos.ftruncate(fd, 2**29)\ntell(os.fstat(fd).st_size)"
    ),
    Attempt(
        "shared memory", "memory", "held = libc.shmget(0, ctypes.c_size_t(2**29), 0o1600)\nif held >= 0: tell(held)"
    ),
    Attempt("a message queue", "memory", "held = libc.msgget(0, 0o1600)\nif held >= 0: tell(held)"),
    Attempt(
        "a zip bomb",
        "memory",
        "import zlib\npacked = zlib.compressobj(1)\nblock = bytes(2**20)\n"
        "bomb = b''.join(packed.compress(block) for _ in range(200)) + packed.flush()\n"
        "tell(len(zlib.decompress(bomb)))",
        timeout=10.0,
    ),
    Attempt(
        "one large file",
        "large files",
        "try:\n    with open('x', 'wb', 0) as file:\n        for _ in range(64): file.write(bytes(2**20))\n"
        "finally:\n    if os.stat('x').st_size > 4 * 2**20: tell(os.stat('x').st_size)",
    ),
    Attempt(
        "a sparse file",
        "large files",
        "try:\n    with open('x', 'wb') as file: file.truncate(2**40)\n"
        "finally:\n    if os.stat('x').st_size > 4 * 2**20: tell(os.stat('x').st_size)",
    ),
    Attempt(
        "a zip bomb on the disk",
        "large files",
        "import gzip, shutil\n"
        "with gzip.open('x.gz', 'wb') as file:\n    for _ in range(8): file.write(bytes(2**20))\n"
        "try: shutil.copyfileobj(gzip.open('x.gz'), open('x', 'wb'))\n"
        "finally:\n    if os.stat('x').st_size > 4 * 2**20: tell(os.stat('x').st_size)",
    ),
    Attempt(
        "many files",
        "many files",
        "total = 0\ntry:\n    for i in range(20):\n        open(f'f{i}', 'wb', 0).write(bytes(2**20 // 2))\n"
        "        total += os.stat(f'f{i}').st_size\nfinally:\n    if total > 4 * 2**20: tell(total)",
    ),
    Attempt(
        "many empty files",
        "many files",
        "made = 0\ntry:\n    for i in range(5000):\n        os.mknod(f'f{i}')\n        made += 1\n"
        "finally:\n    if made > 4100: tell(made)",
        timeout=10.0,
    ),
    Attempt(
        "deep folders",
        "many files",
        "made = 0\ntry:\n    for i in range(4500):\n        os.mkdir('d')\n        os.chdir('d')\n        made += 1\n"
        "finally:\n    if made > 4100: tell(made)",
        timeout=10.0,
    ),
    Attempt(
        "raising limits",
        "limits",
        "import resource\nfor kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):\n"
        "    try:\n        resource.setrlimit(kind, (2**31, 2**31))\n        tell(kind)\n"
        "    except (OSError, ValueError) as error: print(error)",
    ),
    Attempt("outliving its parent", "limits", "if libc.prctl(1, 0, 0, 0, 0) == 0: tell()"),
    Attempt(
        "being root",
        "limits",
        "for give in (os.setuid, os.seteuid, os.setgid):\n"
        "    try:\n        give(0)\n        tell(give)\n    except OSError as error: print(error)",
    ),
    Attempt(
        "taking capabilities",
        "limits",
        "head, all_of_them = struct.pack('II', 0x20080522, 0), b'\\xff' * 24\n"
        "if libc.capset(head, all_of_them) == 0: tell()",
    ),
    Attempt(
        "capabilities that are left",
        "limits",
        "head, have = ctypes.create_string_buffer(struct.pack('II', 0x20080522, 0)), "
        "ctypes.create_string_buffer(24)\nlibc.capget(head, have)\nif any(have.raw): tell(have.raw)",
    ),
    Attempt(
        "calls of 32 bits",
        "limits",
        # push rbx; mov eax, 359 (socket); mov ebx, 1; mov ecx, 1; xor edx, edx; int 0x80; pop rbx; ret
        "import mmap\n"
        "page = mmap.mmap(-1, 4096, prot=7)\n"
        "page.write(bytes.fromhex('53b867010000bb01000000b90100000031d2cd805bc3'))\n"
        "function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))\n"
        "if function() >= 0: tell()",
        machine="x86_64",
    ),
    Attempt(
        "calls by their other numbers", "limits", "if call(0x40000000 + 41, 1, 1, 0) >= 0: tell()", machine="x86_64"
    ),
]

MACHINE = [
    Attempt("unshare of users", "kernel", "if libc.unshare(0x10000000) == 0: tell()"),
    Attempt("unshare of mounts", "kernel", "if libc.unshare(0x20000) == 0: tell()"),
    Attempt(
        "entering other namespaces",
        "kernel",
        "fd = os.open('/proc/1/ns/mnt', 0)\nif libc.setns(fd, 0) == 0: tell()",
    ),
    Attempt("mount", "kernel", "if libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0: tell()"),
    Attempt("making the root writable", "kernel", "if libc.mount(None, b'/', None, 0x20, None) == 0: tell()"),
    Attempt("umount", "kernel", "if libc.umount2(b'/tmp', 2) == 0: tell()"),
    Attempt("chroot", "kernel", "os.mkdir('r')\nos.chroot('r')\ntell()"),
    Attempt("pivot_root", "kernel", "if call(155, b'/tmp', b'/tmp') == 0: tell()", machine="x86_64"),
    Attempt("the clock", "kernel", "time.clock_settime(time.CLOCK_REALTIME, time.time())\ntell()"),
    Attempt(
        "the host's name",
        "kernel",
        "socket.sethostname('owned')\ntell()",
        lambda world, found: "ESCAPED" in found.text or world.hostname() == "owned",
    ),
    Attempt("a kernel module", "kernel", "if call(175, 0, 0, b'') == 0: tell()", machine="x86_64"),
    Attempt("bpf", "kernel", "if call(321, 0, ctypes.create_string_buffer(128), 128) >= 0: tell()", machine="x86_64"),
    Attempt("io_uring", "kernel", "if call(425, 4, ctypes.create_string_buffer(256)) >= 0: tell()"),
    Attempt("userfaultfd", "kernel", "if call(323, 1) >= 0: tell()", machine="x86_64"),
    Attempt("keys of the kernel", "kernel", "if call(250, 0, -3, 1) >= 0: tell()", machine="x86_64"),
    Attempt("the kernel's log", "kernel", "if call(103, 10, 0, 0) >= 0: tell()", machine="x86_64"),
]

TIME = [
    Attempt("an endless loop", "time", "while True: pass", still_runs, timeout=0.4),
    Attempt("sleeping past the limit", "time", "time.sleep(60)", still_runs, timeout=0.4),
    Attempt(
        "ignoring signals",
        "time",
        "for number in range(1, 65):\n"
        "    try: signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        still_runs,
        timeout=0.4,
    ),
    Attempt(
        "catching everything",
        "time",
        "while True:\n    try: time.sleep(0.01)\n    except BaseException: pass",
        still_runs,
        timeout=0.4,
    ),
    Attempt("a loop in C", "time", "import re\nre.match('(a+)+b', 'a' * 64)", still_runs, timeout=0.4),
    Attempt("a number without end", "time", "9 ** 9 ** 9", still_runs, timeout=0.4),
    Attempt(
        "waiting for input",
        "time",
        "try: input()\nexcept EOFError: pass\nsys.stdin.read()\nos.read(0, 1)",
        lambda world, found: found.ended is not None,
    ),
    Attempt(
        "a thread that goes on after the call",
        "time",
        "def spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()",
        lambda world, found: world.works_between_calls(),
    ),
    Attempt(
        "a thread that prints later",
        "time",
        "def late():\n    time.sleep(0.05)\n    print('LATE')\nthreading.Thread(target=late, daemon=True).start()",
        lambda world, found: world.interpreter.run("6 * 7", 3.0).text.strip().splitlines()[-1] != "42",
    ),
    Attempt(
        "atexit",
        "time",
        "import atexit\natexit.register(lambda: open(OPEN + '/atexit', 'w').close())",
        lambda world, found: world.gone() is False or made("atexit")(world, found),
    ),
    Attempt(
        "an alarm for later",
        "time",
        "signal.signal(signal.SIGALRM, lambda *_: open(OPEN + '/alarm', 'w'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.1)",
        lambda world, found: world.works_between_calls() or made("alarm")(world, found),
    ),
]

OUTPUT = [
    Attempt("a flood of lines", "output", "while True: print('x' * 99)", too_long),
    Attempt("a flood of errors", "output", "while True: print('x' * 99, file=sys.stderr)", too_long),
    Attempt("a flood below Python", "output", "while True: os.write(1, b'x' * 65536)", too_long),
    Attempt("one huge line", "output", "print('x' * 2**24)", too_long),
    Attempt("a huge value", "output", "'x' * 2**24", too_long),
    Attempt("a huge error", "output", "raise ValueError('x' * 2**24)", too_long),
    Attempt(
        "an error whose text does not end",
        "output",
        "class E(Exception):\n    def __str__(self):\n        while True: print('x' * 999)\nraise E",
        too_long,
    ),
    Attempt("bytes that are no text", "output", "os.write(1, bytes(range(256)) * 4)", too_long),
    Attempt("half characters", "output", "print('\\ud800' * 100, '\\0' * 100)", too_long),
]

FRAME = "bytes(16) + b'+'"
PROTOCOL = [
    Attempt("forged words on every file", "protocol",
            f"for fd in range(3, 64):\n    try: os.write(fd, {FRAME})\n    except OSError: pass\ntime.sleep(60)",
            lambda world, found: "own channel" not in str(found.ended) or next_call_is_wrong(world, found)),
    Attempt("a word in pieces", "protocol", f"for one in {FRAME}:\n    os.write(3, bytes([one]))",
            lambda world, found: found.ended is None or next_call_is_wrong(world, found)),
    Attempt("random bytes that it finds in its interpreter", "protocol",
            "frame = sys._getframe()\n"
            "while frame and 'head' not in frame.f_locals: frame = frame.f_back\n"
            "word = frame.f_locals['head'][:16]\n"
            "os.write(3, word + b'+' + word + b'+')\nprint('FORGED')",
            lambda world, found: "FORGED" in world.session.run("print(6 * 7)")),
    Attempt("an answer to the next call", "protocol",
            "def later():\n    time.sleep(0.05)\n    os.write(3, bytes(17))\n"
            "threading.Thread(target=later, daemon=True).start()\ntime.sleep(0.1)",
            lambda world, found: found.ended is None or next_call_is_wrong(world, found)),
    Attempt("a pickle", "protocol",
            "import pickle\n"
            "class P:\n    def __reduce__(self): return (open, (OPEN + '/pickle', 'w'))\n"
            "for fd in (1, 2, 3): os.write(fd, pickle.dumps(P()))",
            lambda world, found: made("pickle")(world, found) or next_call_is_wrong(world, found)),
    Attempt("an open file sent to the trainer", "protocol",
            "s = socket.socket(fileno=os.dup(3))\nr, w = os.pipe()\nsocket.send_fds(s, [b'x'], [r, w])",
            lambda world, found: world.open_files() > world.open_files_before),
    Attempt("closing its files", "protocol", "os.closerange(0, 64)", next_call_is_wrong),
    Attempt("closing its output", "protocol", "sys.stdout.close()\nos.close(1)\nos.close(2)", next_call_is_wrong),
    Attempt("closing the channel's end", "protocol", "socket.socket(fileno=3).shutdown(2)", next_call_is_wrong),
    Attempt("reading the channel", "protocol", "socket.socket(fileno=os.dup(3)).setblocking(False)",
            next_call_is_wrong),
    Attempt("os._exit", "protocol", "os._exit(0)", next_call_is_wrong),
    Attempt("sys.exit", "protocol", "sys.exit(3)", next_call_is_wrong),
    Attempt("abort", "protocol", "os.abort()", next_call_is_wrong),
    Attempt("a crash in C", "protocol", "ctypes.string_at(0)", next_call_is_wrong),
    Attempt("recursion without end", "protocol",
            "sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", next_call_is_wrong, timeout=0.5),
    Attempt("a syntax tree without end", "protocol", "eval('(' * 10**5)", next_call_is_wrong),
    Attempt("another sys.stdout", "protocol",
            "import builtins, json, io\nsys.stdout = sys.stderr = None\nbuiltins.print = None\njson.dumps = None",
            lambda world, found: world.session.run("6 * 7") != "42"),
    Attempt("other functions in its interpreter", "protocol",
            "import gc\nfor one in gc.get_objects():\n"
            "    if type(one).__name__ == 'Executor': one._run = lambda code: b'+'",
            found_by_next("6 * 7 != 42")),
    Attempt("other builtins", "next rollout", "import builtins\nbuiltins.len = lambda x: 7",
            found_by_next("len('') == 7")),
    Attempt("another module", "next rollout", "import math\nmath.pi = 3\nsys.modules['json'] = math",
            found_by_next("__import__('math').pi == 3 or not hasattr(__import__('json'), 'dumps')")),
    Attempt("paths of modules", "next rollout",
            "sys.path.insert(0, os.getcwd())\nopen('colorsys.py', 'w').write('evil = 1')\n"
            "os.environ.update(PYTHONPATH=os.getcwd(), PYTHONSTARTUP='x.py', PYTHONHOME='/tmp')\nimport colorsys",
            found_by_next("hasattr(__import__('colorsys'), 'evil') or 'PYTHONPATH' in __import__('os').environ")),
    Attempt("a customised start", "next rollout",
            "for name in ('sitecustomize', 'usercustomize'): open(name + '.py', 'w').write('import builtins; "
            "builtins.evil = 1')", found_by_next("hasattr(__import__('builtins'), 'evil')")),
    Attempt("the random numbers", "next rollout", "import random\nrandom.seed(77)",
            lambda world, found: len({world.fresh_text("import random; random.random()") for _ in range(2)}) != 1),
]  # fmt: skip

ATTEMPTS = [
    *ENVIRONMENT,
    *MEMORY_OF_OTHERS,
    *FILES,
    *TELLING,
    *SIGNALS,
    *NETWORK,
    *PROGRAMS,
    *BOUNDS,
    *MACHINE,
    *TIME,
    *OUTPUT,
    *PROTOCOL,
]
