"""a process -> one that sees only libraries and its own folder, sees no other process, and has limited resources.

Bubblewrap confines the fork server: no network, no other processes, and a root with read-only libraries. Each of its
interpreters then moves to its own namespaces, so that rollouts cannot see each other, and gives up every privilege.
Each function here is one step; `fork_server.py` and `executor.py` call them in order.
"""

import ctypes
import os
import resource
import struct
import sys
from contextlib import suppress


SCRATCH = "/tmp"
NEXT_SCRATCH = "/.scratch"  # where the scratch folder is prepared
DEVICES = ("null", "zero", "random", "urandom")
FIRST_USER, USERS = 61184, 4336  # ids that systemd gives to services temporarily: no person has them
INSIDE = 1000  # the user id that an interpreter sees for itself if users are mapped
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


# ---- what interpreters see of the machine


def visible_paths(home: str) -> "list[str]":
    """This interpreter, its libraries, the files that the library loader reads, and the modules beside this one."""
    paths = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo"]
    paths += ["/etc/ld.so.cache", "/etc/alternatives", os.path.join(home, "sandbox")]
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix} - {"/usr", "/usr/local"}
    # Not the whole prefixes: they also hold settings, such as a pip.conf with an index's password, or bin/activate.
    parts = ("lib", "lib64", "share/zoneinfo", "pyvenv.cfg")
    paths += [os.path.join(prefix, part) for prefix in prefixes for part in parts]
    paths += [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    program = sys.executable
    paths.append(program)
    while os.path.islink(program):
        program = os.path.normpath(os.path.join(os.path.dirname(program), os.readlink(program)))
        paths.append(program)
    visible: list[str] = []
    for path in sorted(set(paths), key=len):  # a folder before its contents
        if os.path.exists(path) and not any(path.startswith(f"{one}/") for one in visible):
            visible.append(path)
    return visible


def bubblewrap_options(visible: "list[str]", as_root: bool) -> "list[str]":
    """Options for namespaces without a network, and a read-only root with the visible paths."""
    # The fork server is the first process of its namespace: when it ends, all the others end too.
    options = ["--unshare-ipc", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    options += ["--unshare-pid", "--as-pid-1", "--cap-drop", "ALL"]
    if as_root:  # so that each interpreter can have its own user and namespaces
        for name in ("SYS_ADMIN", "SETPCAP", "SETUID", "SETGID"):
            options += ["--cap-add", f"CAP_{name}"]
    else:
        options += ["--unshare-user", "--uid", str(INSIDE), "--gid", str(INSIDE)]
    devices = [f"/dev/{name}" for name in DEVICES]
    for folder in dict.fromkeys(one for path in (*visible, *devices) for one in _parents(path)):
        options += ["--dir", folder]  # otherwise only root could enter it
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
    """Put this process's children into new namespaces. Root does it as root; other users as the root of a user
    namespace, which also counts their threads separately. `proc` is an open file of the folder /proc, which is missing
    inside."""
    flags = NEW_MOUNTS | NEW_PIDS | NEW_IPC
    _check(_libc.unshare(flags if as_root else flags | NEW_USER), "creating namespaces")
    if not as_root:
        _write(proc, "self/setgroups", "deny")
        _write(proc, "self/uid_map", f"{INSIDE} {INSIDE} 1")
        _write(proc, "self/gid_map", f"{INSIDE} {INSIDE} 1")


def _write(proc: int, name: str, text: str) -> None:
    with open(os.open(name, os.O_WRONLY, dir_fd=proc), "w") as file:
        file.write(text)


def make_scratch(size: int, visible: "list[str]") -> None:
    """Make a scratch folder in memory, of a bounded size. It is empty except for the visible paths below the machine's
    /tmp: some environments live there."""
    options = f"size={size},nr_inodes={MOST_FILES},mode=1777"
    _mount("scratch", NEXT_SCRATCH, "tmpfs", NO_SUID | NO_DEVICES | NO_PROGRAMS, options)
    for path in visible:
        if path.startswith(f"{SCRATCH}/"):
            _show(path, path.replace(SCRATCH, NEXT_SCRATCH, 1))
    _mount(NEXT_SCRATCH, SCRATCH, None, MOVE)


def _show(source: str, target: str) -> None:
    """Mount a file or folder at a second path, where it is as read-only as at its own."""
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
    """Have the kernel end this process, and not the trainer, if the machine runs out of memory."""
    with suppress(OSError):  # some containers have no such file
        _write(proc, "self/oom_score_adj", "1000")


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that made it ends."""
    _check(_prctl(SET_DEATH_SIGNAL, 9), "PR_SET_PDEATHSIG")


def become(user: "int | None") -> None:
    """Drop all capabilities for good, and become this user if one is given."""
    for capability in range(64):
        _prctl(DROP_BOUNDING, capability)  # fails for capabilities that the kernel lacks or we do not have
    _prctl(AMBIENT, 4)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, none = struct.pack("II", CAPABILITIES_3, 0), bytes(24)
    _check(_libc.capset(header, none), "dropping capabilities")
    _check(_prctl(NO_NEW_PRIVILEGES, 1), "PR_SET_NO_NEW_PRIVS")


def be_private() -> None:
    """Let no other process of the same user inspect this one. Also clears what becoming another user cleared."""
    _check(_prctl(SET_DUMPABLE, 0), "PR_SET_DUMPABLE")


def limit(memory: int, file_size: int, open_files: int, cpu_seconds: int, tasks: "int | None") -> None:
    """Set limits that cannot be raised again."""
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
