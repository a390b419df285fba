"""the requested isolation ("auto", or a level) -> a level of isolation that works here, found by trying.

`THREATS` lists what each level does not stop: the documentation's table is made from it, and the escape tests check
it.
"""

import logging
import sys
from functools import cache
from typing import NamedTuple

from ...lookup import nearest
from .interpreter import NotStarted
from .pool import Pool, Settings


logger = logging.getLogger(__name__)

# The strongest first.
LEVELS = ("bubblewrap", "process")
# The weaker level has two forms: root makes a user for each interpreter, an ordinary user has only itself.
PROCESS, PROCESS_AS_SELF = "process", "process, started by an ordinary user"
WEAK = (PROCESS, PROCESS_AS_SELF)


class Threat(NamedTuple):
    """Something that code may try, and the levels that do not stop it."""

    what: str
    not_stopped_at: tuple[str, ...] = ()


THREATS = {
    "environment": Threat("read the trainer's environment variables from its own"),
    "files of others": Threat("read a file on the machine that every user may read", WEAK),
    "own files": Threat("read a file that the user who trains may read: keys, the repository", (PROCESS_AS_SELF,)),
    "private files": Threat("read a file that only root may read"),
    "writing": Threat("change a file of the user who trains: libraries, the repository", (PROCESS_AS_SELF,)),
    "traces": Threat("leave a file for the next rollout in a folder that all users may write to", WEAK),
    "processes": Threat("see which processes are running", WEAK),
    "other environments": Threat("read the environment of a process of the user who trains", (PROCESS_AS_SELF,)),
    "memory of others": Threat(
        "reach memory and files of a process of the user who trains via /proc", (PROCESS_AS_SELF,)
    ),
    "calls on others": Threat("take another process's memory or open files, trace it or schedule it"),
    "telling": Threat("communicate with another rollout through locks or watches on shared files"),
    "signals": Threat("send signals to another process"),
    "network": Threat("open a socket: network, name lookup, services on the machine"),
    "programs": Threat("start a process or another program"),
    "kernel": Threat("mount, change the root, make namespaces, load modules, set the clock"),
    "memory": Threat("use more memory than its limit"),
    "large files": Threat("write a file larger than its limit"),
    "many files": Threat("fill the disk with many files", WEAK),
    "threads": Threat("start more threads than its limit (their stacks still count as memory)", (PROCESS_AS_SELF,)),
    "time": Threat("keep running after its time, its call or its rollout is over"),
    "output": Threat("return a result that is too long or is not text"),
    "protocol": Threat("forge a result, or break the calls after it"),
    "limits": Threat("raise its limits or gain privileges"),
    "next rollout": Threat("change what the code of another rollout finds in its interpreter"),
}


def table() -> str:
    """The threats by level, as text.

    Example: a row is "read a file on the machine that every user may read    stopped    NOT STOPPED    NOT STOPPED"
    """
    columns = (LEVELS[0], *WEAK)
    heads = ["Code tries to", "bubblewrap", "process (root)", "process (user)"]
    rows = [
        [threat.what, *("NOT STOPPED" if column in threat.not_stopped_at else "stopped" for column in columns)]
        for threat in THREATS.values()
    ]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *rows]
    )


# Imports a module that is not loaded yet, so that it must be found from inside, and prints the library folders that
# the interpreter cannot read.
LOOK = """
import colorsys, os, sys
def is_closed(path):
    try:
        os.listdir(path)
    except PermissionError:
        return True
    except OSError:
        pass
    return False
print(*filter(is_closed, (path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages"))))
"""


class Tried(NamedTuple):
    """Why a level does not work here, or None if it does; and the libraries that code cannot read at it."""

    problem: str | None
    closed: str = ""


@cache
def try_level(level: str, python: str) -> Tried:
    """Start an interpreter at this level, and run `LOOK` in it."""
    pool = Pool(Settings(level, timeout=30.0, warm=0, python=python))
    try:
        found = pool.take().run(LOOK, 30.0)
    except (NotStarted, OSError) as error:
        return Tried(str(error))
    finally:
        pool.close()
    if found.raised:
        return Tried(
            f"the libraries of {python} cannot be read at this level. Are they below a folder that is closed to "
            f"other users? {' '.join(found.text.split())[-200:]}"
        )
    return Tried(None, found.text.strip())


def choose(isolation: str, python: str = sys.executable) -> str:
    """The requested level, or for "auto" the strongest that works here. Raises a ValueError if none works."""
    if isolation == "namespaces":
        raise ValueError(
            "isolation='namespaces' was removed: bubblewrap isolates as strongly (pip install 'a2tgpo_trl[python]'). "
            "Set isolation='bubblewrap', or leave it out to get the strongest level that works."
        )
    if isolation not in ("auto", *LEVELS):
        raise ValueError(
            f"isolation must be auto, {' or '.join(LEVELS)}; got {isolation!r}.{nearest(isolation, LEVELS)}"
        )
    problems: dict[str, str] = {}
    for level in LEVELS if isolation == "auto" else (isolation,):
        tried = try_level(level, python)
        if tried.problem is None:
            _tell(level, _listed(problems))
            _tell_of_closed_libraries(tried.closed)
            return level
        problems[level] = tried.problem
    raise ValueError(
        f"isolation={isolation!r} is not possible here. {_listed(problems)} Install bubblewrap (pip install "
        "'a2tgpo_trl[python]'), allow user namespaces (sysctl kernel.unprivileged_userns_clone or "
        "kernel.apparmor_restrict_unprivileged_userns; in a container, permission to create them), or run code "
        "elsewhere: a2tgpo serve-python there, remote= here."
    )


def _listed(problems: dict[str, str]) -> str:
    return " ".join(f"{level}: {reason}." for level, reason in problems.items())


@cache
def _tell(level: str, problems: str) -> None:
    if level == PROCESS:
        open_doors = "; ".join(threat.what for threat in THREATS.values() if threat.not_stopped_at)
        logger.warning(
            "THE POLICY'S CODE IS ONLY WEAKLY ISOLATED (level process). Depending on the user who trains, it can "
            f"{open_doors}. {f'The stronger level does not work here: {problems}' if problems else ''}"
        )
    else:
        logger.info(f"The policy's code is isolated at the level {level}.")


@cache
def _tell_of_closed_libraries(closed: str) -> None:
    if closed:
        logger.warning(
            "The policy's code has only the standard library: it runs as a separate user, who cannot read what is "
            f"installed in {closed}. Let others read that folder and pass through those above it (chmod o+x), or "
            "name an interpreter elsewhere: python=."
        )
