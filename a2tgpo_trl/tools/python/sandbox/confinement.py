"""a process -> one that sees the libraries and a folder of its own, is alone, and can hold no more than it is given.

Bubblewrap confines the fork server: no network, no other processes, and a root that holds libraries to read. Each of
its interpreters then leaves for namespaces of its own, so that rollouts cannot see each other, and gives up every
privilege. Each function here is a step; `fork_server.py` and `executor.py` say in which order they are taken.
"""

import ctypes
import os
import resource
import struct
import sys
from contextlib import suppress


SCRATCH = "/tmp"
NEXT_SCRATCH = "/.scratch"  # where it is made ready
DEVICES = ("null", "zero", "random", "urandom")
FIRST_USER, USERS = 61184, 4336  # ids that systemd hands out to services for a while: no person has them
INSIDE = 1000  # the id that an interpreter sees of itself where users are mapped
MOST_FILES = 4096  # files and folders in the scratch folder

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PIDS = 0x00020000, 0x08000000, 0x10000000, 0x20000000
NO_SUID, NO_DEVICES, NO_PROGRAMS, BIND, MOVE, RECURSIVE = 0x2, 0x4, 0x8, 0x1000, 0x2000, 0x4000
SET_DEATH_SIGNAL, SET_DUMPABLE, DROP_BOUNDING, NO_NEW_PRIVILEGES, AMBIENT = 1, 4, 24, 38, 47
CAPABILITIES_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, *values: int) -> int:
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    return _libc.prctl(ctypes.c_int(option), *arguments)


# ---- what is seen of the machine


def visible_paths(home: str) -> "list[str]":
    """This interpreter, its libraries, what the loader of libraries reads, and the modules beside this one."""
    paths = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo"]
    paths += ["/etc/ld.so.cache", "/etc/alternatives", os.path.join(home, "sandbox")]
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix} - {"/usr", "/usr/local"}
    # Not all of them: beside these lie settings, such as a pip.conf with the password of an index, or bin/activate.
    parts = ("lib", "lib64", "share/zoneinfo", "pyvenv.cfg")
    paths += [os.path.join(prefix, part) for prefix in prefixes for part in parts]
    paths += [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    program = sys.executable
    paths.append(program)
    while os.path.islink(program):
        program = os.path.normpath(os.path.join(os.path.dirname(program), os.readlink(program)))
        paths.append(program)
    visible: list[str] = []
    for path in sorted(set(paths), key=len):  # a folder before what is in it
        if os.path.exists(path) and not any(path.startswith(f"{one}/") for one in visible):
            visible.append(path)
    return visible


def bubblewrap_options(visible: "list[str]", as_root: bool) -> "list[str]":
    """Namespaces without a network, and a root with what is visible, to be read only."""
    # The fork server is the first process of its namespace: with it end all the others.
    options = ["--unshare-ipc", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    options += ["--unshare-pid", "--as-pid-1", "--cap-drop", "ALL"]
    if as_root:  # to be another user in each interpreter, with namespaces of its own
        for name in ("SYS_ADMIN", "SETPCAP", "SETUID", "SETGID"):
            options += ["--cap-add", f"CAP_{name}"]
    else:
        options += ["--unshare-user", "--uid", str(INSIDE), "--gid", str(INSIDE)]
    devices = [f"/dev/{name}" for name in DEVICES]
    for folder in dict.fromkeys(one for path in (*visible, *devices) for one in _parents(path)):
        options += ["--dir", folder]  # which would otherwise be closed to all but root
    for path in visible:
        options += ["--ro-bind", os.path.realpath(path), path]
    for path in devices:
        options += ["--dev-bind", path, path]
    return [*options, "--dir", SCRATCH, "--dir", NEXT_SCRATCH, "--remount-ro", "/"]


def _parents(path: str) -> "list[str]":
    """Example: "/usr/local/lib" -> ["/usr", "/usr/local"]"""
    parts = path.split("/")[1:-1]
    return ["/" + "/".join(parts[: i + 1]) for i in range(len(parts))]


# ---- namespaces of an interpreter


def leave_namespaces(proc: int, as_root: bool) -> None:
    """Children of this process are alone with each other. Root does it as root; others as the root of a user
    namespace, which also counts their threads apart from all others'. `proc` is the folder /proc, open: inside there
    is none."""
    flags = NEW_MOUNTS | NEW_PIDS | NEW_IPC
    _check(_libc.unshare(flags if as_root else flags | NEW_USER), "namespaces of its own")
    if not as_root:
        _write(proc, "self/setgroups", "deny")
        _write(proc, "self/uid_map", f"{INSIDE} {INSIDE} 1")
        _write(proc, "self/gid_map", f"{INSIDE} {INSIDE} 1")


def _write(proc: int, name: str, text: str) -> None:
    with open(os.open(name, os.O_WRONLY, dir_fd=proc), "w") as file:
        file.write(text)


def make_scratch(size: int, visible: "list[str]") -> None:
    """A folder in memory, of a bounded size. It is empty but for what is visible of the machine's folder of that name:
    some environments live in /tmp."""
    options = f"size={size},nr_inodes={MOST_FILES},mode=1777"
    _mount("scratch", NEXT_SCRATCH, "tmpfs", NO_SUID | NO_DEVICES | NO_PROGRAMS, options)
    for path in visible:
        if path.startswith(f"{SCRATCH}/"):
            _show(path, path.replace(SCRATCH, NEXT_SCRATCH, 1))
    _mount(NEXT_SCRATCH, SCRATCH, None, MOVE)


def _show(source: str, target: str) -> None:
    """A file or folder, to be found at another path as well, and as read-only there as where it is."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(source):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    _mount(source, target, None, BIND | RECURSIVE)


def _mount(source: str, target: str, kind: "str | None", flags: int, options: "str | None" = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    result = _libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3])
    _check(result, f"mounting {target}")


# ---- privileges and limits


def be_first_to_end(proc: int) -> None:
    """Where the machine runs out of memory, it is this process that the kernel ends, and not the trainer."""
    with suppress(OSError):  # some containers have no such file
        _write(proc, "self/oom_score_adj", "1000")


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
