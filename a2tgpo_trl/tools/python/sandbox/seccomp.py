"""names of system calls -> a seccomp filter that refuses them, in this process and permanently.

Refused calls fail with EPERM, like calls that need a privilege, so that ordinary code sees an ordinary error.
"""

import ctypes
import os
import platform
import struct


# name: (x86_64, aarch64); None if a processor has no such call
REFUSED: "dict[str, tuple[int | None, int | None]]" = {
    # other programs and further processes: an interpreter is one process
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    # the network and local sockets; pairs of streams within the process are allowed, see below
    "accept": (43, 202),
    "accept4": (288, 242),
    "bind": (49, 200),
    "connect": (42, 203),
    "listen": (50, 201),
    "socket": (41, 198),
    # other processes: their memory, files and signals
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "tkill": (200, 130),
    "ioprio_set": (251, 30),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "setpriority": (141, 140),
    # ways for processes to communicate through a file that both can only read: locks, watches, what is in memory
    "cachestat": (451, 451),
    "fanotify_mark": (301, 263),
    "flock": (73, 32),
    "inotify_add_watch": (254, 27),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "futex_requeue": (456, 456),
    "futex_wait": (455, 455),
    "futex_waitv": (449, 449),
    "futex_wake": (454, 454),
    # objects that another process has made, by their number
    "mq_unlink": (241, 181),
    "msgctl": (71, 187),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "semctl": (66, 191),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    # memory that no limit counts
    "io_setup": (206, 0),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "semget": (64, 190),
    "shmget": (29, 194),
    # other views of the machine
    "chroot": (161, 51),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "umount2": (166, 39),
    "unshare": (272, 97),
    # the machine itself: clocks, modules, keys, names
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "nfsservctl": (180, 42),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    # parts of the kernel that ordinary code does not need, and that had most of its vulnerabilities
    "bpf": (321, 280),
    "fanotify_init": (300, 262),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "userfaultfd": (323, 282),
}

# Calls refused only with some arguments: by name, (x86_64, aarch64), the position of the argument, its values.
REFUSED_VALUES: "dict[str, tuple[tuple[int, int], int, tuple[int, ...]]]" = {
    # its death signal when the parent dies, whether it can be traced, its memory map
    "prctl": ((157, 167), 0, (1, 4, 35, 0x59616D61)),
    # which process the kernel signals when a file is ready; locks of processes and open files, leases, watches, hints
    "fcntl": ((72, 25), 1, (8, 15, 5, 6, 7, 36, 37, 38, 1024, 1025, 1026, 1036, 1038)),
    # the same signals, and typing into a terminal
    "ioctl": ((16, 29), 1, (0x8901, 0x8902, 0x5412, 0x541C)),
}
# Calls allowed only with some values of the first argument: (x86_64, aarch64), the values; None: its own id.
ALLOWED_VALUES: "dict[str, tuple[tuple[int, int], tuple[int | None, ...]]]" = {
    "kill": ((62, 129), (None,)),
    "tgkill": ((234, 131), (None,)),
    "prlimit64": ((302, 261), (0, None)),
    "sched_setaffinity": ((203, 122), (0, None)),
}
# Waits on memory that other processes may see too, such as a library's page. In the kernel's names: WAIT, WAIT_BITSET
# and WAIT_REQUEUE_PI, without FUTEX_PRIVATE_FLAG, by either clock. The C library waits this way for a thread that
# ends; it gets EAGAIN and tries again.
FUTEX, SHARED_WAITS = (202, 98), (0, 9, 11, 256, 265, 267)
# Datagram pairs can reach any named socket, and so can pairs of sequenced packets, which take an address when they
# send. Only stream pairs are allowed, which ignore addresses.
SOCKETPAIR, LOCAL, STREAM, KIND = (53, 199), 1, 1, 0xF
CLONE, CLONE3 = (56, 220), (435, 435)
SECCOMP = (317, 277)

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, and the kernel's number for it
THREAD = 0x10000  # CLONE_THREAD: a thread of this process, not a new process
LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06  # instructions of the filter
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
EPERM, EAGAIN, ENOSYS = 1, 11, 38
NUMBER, MACHINE = 0, 4  # offsets of the call's number and its machine in the kernel's record
X32 = 0x40000000  # on x86_64, a second table of calls with other numbers
SET_FILTER, ALL_THREADS = 1, 1


def argument(place: int) -> int:
    """The offset of the lower half of an argument in the kernel's record."""
    return 16 + 8 * place


def program(machine: str, own_id: int) -> bytes:
    """The filter, as instructions of 8 bytes."""
    column, number_of_machine = MACHINES[machine]
    code: list[tuple[int, int, int, int]] = []

    def add(operation: int, value: int, if_so: int = 0, if_not: int = 0) -> None:
        code.append((operation, if_so, if_not, value))

    def only_for(number: int, body: "list[tuple[int, int, int, int]]") -> None:
        """Add instructions that are skipped for any other call. They end with a verdict."""
        add(EQUAL, number, 0, len(body))
        code.extend(body)

    refuse, allow = (RETURN, 0, 0, REFUSE | EPERM), (RETURN, 0, 0, ALLOW)
    add(LOAD, MACHINE)
    add(EQUAL, number_of_machine, 1, 0)
    add(RETURN, KILL)
    add(LOAD, NUMBER)
    if machine == "x86_64":
        add(AT_LEAST, X32, 0, 1)
        add(RETURN, REFUSE | EPERM)
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            only_for(number, [refuse])
    only_for(CLONE[column], [(LOAD, 0, 0, argument(0)), (ANY_BIT, 1, 0, THREAD), refuse, allow])
    # Its arguments are in memory, where a filter cannot look; the C library then uses the older call.
    only_for(CLONE3[column], [(RETURN, 0, 0, REFUSE | ENOSYS)])
    pair = [(LOAD, 0, 0, argument(0)), (EQUAL, 1, 0, LOCAL), refuse]
    pair += [(LOAD, 0, 0, argument(1)), (AND, 0, 0, KIND), (EQUAL, 0, 1, STREAM), allow, refuse]
    only_for(SOCKETPAIR[column], pair)
    again = (RETURN, 0, 0, REFUSE | EAGAIN)
    waits = [one for value in SHARED_WAITS for one in ((EQUAL, 0, 1, value), again)]
    only_for(FUTEX[column], [(LOAD, 0, 0, argument(1)), *waits, allow])
    for places, place, refused in REFUSED_VALUES.values():
        tests = [one for value in refused for one in ((EQUAL, 0, 1, value), refuse)]
        only_for(places[column], [(LOAD, 0, 0, argument(place)), *tests, allow])
    for places, allowed in ALLOWED_VALUES.values():
        tests = [one for value in allowed for one in ((EQUAL, 0, 1, own_id if value is None else value), allow)]
        only_for(places[column], [(LOAD, 0, 0, argument(0)), *tests, refuse])
    add(RETURN, ALLOW)
    return b"".join(struct.pack("HBBI", *one) for one in code)


class Program(ctypes.Structure):
    """The kernel's `sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def install() -> None:
    """Refuse these calls from now on. Needs PR_SET_NO_NEW_PRIVS; cannot be undone."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise OSError(f"the system call filter supports {' and '.join(MACHINES)}, not {machine}")
    code = program(machine, os.getpid())
    column, _ = MACHINES[machine]
    libc = ctypes.CDLL(None, use_errno=True)
    given = Program(len(code) // 8, code)
    number = ctypes.c_long(SECCOMP[column])
    if libc.syscall(number, ctypes.c_long(SET_FILTER), ctypes.c_long(ALL_THREADS), ctypes.byref(given)) != 0:
        raise OSError(ctypes.get_errno(), "the kernel does not support system call filters (CONFIG_SECCOMP_FILTER)")
