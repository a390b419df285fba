"""a fresh process -> one that sees its own files only, is alone, and can hold no more than it is given.

Each function is a step; `cell.py` and `nursery.py` say which of them a level of isolation takes. Needs Linux 5.12 for
namespaces of its own (`mount_setattr`); bubblewrap does with less.
"""

import ctypes
import os
import resource
import struct
from contextlib import suppress


SCRATCH = "/tmp"
NEXT_SCRATCH = "/.scratch"  # where it is made ready
DEVICES = ("null", "zero", "random", "urandom")
FIRST_USER, USERS = 61184, 4336  # ids that systemd hands out to services for a while: no person has them
INSIDE = 1000  # the id that an interpreter sees of itself where users are mapped
MOST_FILES = 4096  # files and folders in the scratch folder
NAME = b"sandbox"

NEW_MOUNTS, NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = (
    0x00020000,
    0x02000000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
READ_ONLY, NO_SUID, NO_DEVICES, NO_PROGRAMS, REMOUNT, BIND, MOVE, RECURSIVE, PRIVATE = (
    0x1,
    0x2,
    0x4,
    0x8,
    0x20,
    0x1000,
    0x2000,
    0x4000,
    0x40000,
)
DETACH = 2
MOUNT_SETATTR, AT_RECURSIVE = 442, 0x8000
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SET_DEATH_SIGNAL, SET_DUMPABLE, DROP_BOUNDING, NO_NEW_PRIVILEGES, AMBIENT = 1, 4, 24, 38, 47
CAPABILITIES_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, *values: int) -> int:
    words = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    return _libc.prctl(ctypes.c_int(option), *words)


# ---- namespaces


def leave(as_root: bool) -> None:
    """Leave the namespaces of the machine. Children of this process are alone with each other: no network, no other
    processes. Root does it as root; others as the root of a user namespace, which is mapped to themselves."""
    user, group = os.getuid(), os.getgid()
    flags = NEW_MOUNTS | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_PIDS | NEW_NET
    _check(_libc.unshare(flags if as_root else flags | NEW_USER), "namespaces of its own")
    if not as_root:
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"{INSIDE} {user} 1"),
            ("gid_map", f"{INSIDE} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    _check(_libc.sethostname(NAME, len(NAME)), "a name of its own")


def _mount(source: "str | None", target: str, kind: "str | None", flags: int, options: "str | None" = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, options)]
    result = _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
    _check(result, f"mounting {target}")


def _pivot(machine: str, new: str, old: str) -> None:
    number = ctypes.c_long(PIVOT_ROOT[machine])
    _check(_libc.syscall(number, os.fsencode(new), os.fsencode(old)), f"making {new} the root")


def _seal(path: str, attributes: int, flags: int = 0) -> None:
    """Give a mount, or with AT_RECURSIVE all below it as well, these attributes."""
    words = struct.pack("QQQQ", attributes, 0, 0, 0)
    number, size = ctypes.c_long(MOUNT_SETATTR), ctypes.c_size_t(len(words))
    result = _libc.syscall(number, ctypes.c_int(-100), os.fsencode(path), ctypes.c_uint(flags), words, size)
    _check(result, f"making {path} read-only")


def build_root(machine: str, shown: "list[str]") -> None:
    """A root folder that holds these paths of the machine, read-only, four devices and nothing else."""
    sources = {path: os.path.realpath(path) for path in shown}  # links lead elsewhere once the root is another
    _mount(None, "/", None, PRIVATE | RECURSIVE)
    _mount("root", SCRATCH, "tmpfs", NO_SUID | NO_DEVICES, "mode=755,size=1m")
    os.mkdir(f"{SCRATCH}/old")
    os.mkdir(f"{SCRATCH}/new")
    _pivot(machine, SCRATCH, f"{SCRATCH}/old")  # the machine's files are at /old from here on
    os.chdir("/")
    _mount("root", "/new", "tmpfs", NO_SUID | NO_DEVICES, "mode=755,size=1m")
    for path, source in sources.items():
        _show(f"/old{source}", f"/new{path}", NO_DEVICES)
    for name in DEVICES:
        _show(f"/old/dev/{name}", f"/new/dev/{name}", 0)
    for folder in (SCRATCH, NEXT_SCRATCH):
        os.makedirs(f"/new{folder}", exist_ok=True)
    os.mkdir("/new/.old")
    _pivot(machine, "/new", "/new/.old")
    os.chdir("/")
    _check(_libc.umount2(b"/.old", DETACH), "letting go of the machine's files")
    os.rmdir("/.old")


def _show(source: str, target: str, attributes: int) -> None:
    """A file or folder, to be read at another path as well."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(source):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    _mount(source, target, None, BIND | RECURSIVE)
    _seal(target, READ_ONLY | NO_SUID | attributes, AT_RECURSIVE)


def make_scratch(size: int, shown: "list[str]") -> None:
    """A folder in memory, of a bounded size, and a root in which nothing else can be written. It is empty but for what
    is shown of the machine's folder of that name: some environments live in /tmp."""
    options = f"size={size},nr_inodes={MOST_FILES},mode=1777"
    _mount("scratch", NEXT_SCRATCH, "tmpfs", NO_SUID | NO_DEVICES | NO_PROGRAMS, options)
    for path in shown:
        if path.startswith(f"{SCRATCH}/"):
            _show(path, path.replace(SCRATCH, NEXT_SCRATCH, 1), NO_DEVICES)
    _mount(NEXT_SCRATCH, SCRATCH, None, MOVE)
    os.rmdir(NEXT_SCRATCH)
    _seal("/", READ_ONLY)


# ---- privileges and limits


def be_first_to_end() -> None:
    """Where the machine runs out of memory, it is this process that the kernel ends, and not the trainer."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # some containers have no such file
        file.write("1000")


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that made it ends."""
    _check(_prctl(SET_DEATH_SIGNAL, 9), "PR_SET_PDEATHSIG")


def become(user: "int | None") -> None:
    """Have no capability, and no way to get one; where we are root, be this user instead."""
    for capability in range(64):
        _prctl(DROP_BOUNDING, capability)  # fails for those that the kernel does not know or we do not have
    _prctl(AMBIENT, 4)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, none = struct.pack("II", CAPABILITIES_3, 0), bytes(24)
    _check(_libc.capset(header, none), "dropping capabilities")
    _check(_prctl(NO_NEW_PRIVILEGES, 1), "PR_SET_NO_NEW_PRIVS")


def be_private() -> None:
    """Let no other process of the same user look into this one. Also clears what becoming another user cleared."""
    _check(_prctl(SET_DUMPABLE, 0), "PR_SET_DUMPABLE")


def limit(memory: int, file_size: int, open_files: int, cpu_seconds: int, tasks: "int | None") -> None:
    """Bounds that cannot be raised again."""
    bounds = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    if tasks is not None:
        bounds[resource.RLIMIT_NPROC] = tasks
    for kind, most in bounds.items():
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
