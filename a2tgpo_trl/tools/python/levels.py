"""a wish ("auto", or at least so much) -> the strongest level of isolation that works here, found by trying.

What a level does not stop stands in `THREATS`: the table of the documentation is made of it, and the tests of escapes
expect what it says.
"""

import logging
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from ...recipe_file import nearest
from .interpreter import NotStarted
from .pool import Pool, Settings


logger = logging.getLogger(__name__)

# The strongest first.
LEVELS = ("bubblewrap", "namespaces", "process")
# The weakest is two: root makes a user for each interpreter, an ordinary user has nobody but itself.
PROCESS, PROCESS_AS_SELF = "process", "process, started by an ordinary user"
WEAK = (PROCESS, PROCESS_AS_SELF)


class Threat(NamedTuple):
    """Something that code may try, and the levels at which it succeeds."""

    what: str
    not_stopped_at: tuple[str, ...] = ()


THREATS = {
    "environment": Threat("read the trainer's environment from its own"),
    "files of others": Threat("read a file of the machine that every user may read", WEAK),
    "own files": Threat("read a file that the user who trains may read: keys, the repository", (PROCESS_AS_SELF,)),
    "private files": Threat("read a file that only root may read"),
    "writing": Threat("change a file of the user who trains: libraries, the repository", (PROCESS_AS_SELF,)),
    "traces": Threat("leave a file for the next rollout in a folder that all may write to", WEAK),
    "processes": Threat("see which processes there are", WEAK),
    "other environments": Threat("read the environment of a process of the user who trains", (PROCESS_AS_SELF,)),
    "memory of others": Threat(
        "reach memory and files of a process of the user who trains by /proc", (PROCESS_AS_SELF,)
    ),
    "calls on others": Threat("trace or schedule another process, or take its memory or open files by system calls"),
    "telling": Threat("tell another rollout, or learn from it, by locks or watches on shared files"),
    "signals": Threat("send signals to another process"),
    "network": Threat("open a socket: network, names, services of the machine"),
    "programs": Threat("start a process or another program"),
    "namespaces": Threat("mount, change the root, make namespaces, load modules, set the clock"),
    "memory": Threat("use more memory than it may have"),
    "large files": Threat("write a file larger than its limit"),
    "many files": Threat("fill the disk with many files", WEAK),
    "threads": Threat("start more threads than it may have (their stacks still count as memory)", (PROCESS_AS_SELF,)),
    "time": Threat("run on after its time, after its call or after its rollout"),
    "output": Threat("give a longer result than it may, or one that is no text"),
    "protocol": Threat("write a result that is not its own, or break what comes after"),
    "limits": Threat("raise its limits, or give itself privileges"),
    "next rollout": Threat("change what the code of another rollout finds in its interpreter"),
}


def table() -> str:
    """The threats by level, as text.

    Example: a row is "read a file of the machine that every user may read    stopped    stopped    not    not"
    """
    columns = (*LEVELS[:2], *WEAK)
    heads = ["Code tries to", "bubblewrap", "namespaces", "process (root)", "process (other user)"]
    rows = [
        [threat.what, *("NOT STOPPED" if column in threat.not_stopped_at else "stopped" for column in columns)]
        for threat in THREATS.values()
    ]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *rows]
    )


@cache
def problem(level: str, python: str) -> str | None:
    """Why this level does not work here; None if it does."""
    if level == "bubblewrap" and shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    pool = Pool(Settings(level, timeout=30.0, warm=0, python=python))
    try:
        # A module that nobody has loaded, so that it must be found in the jail.
        found = pool.take().run("import colorsys", 30.0)
    except (NotStarted, OSError) as error:
        return str(error)
    finally:
        pool.close()
    if found.raised:
        return (
            f"in it, the libraries of {python} cannot be read. Are they below a folder that is closed to other users? "
            f"{' '.join(found.text.split())[-200:]}"
        )
    return None


def choose(isolation: str, python: str = sys.executable) -> str:
    """The strongest level that works here, and is at least what is asked for. Raises a ValueError if there is none."""
    if isolation not in ("auto", *LEVELS):
        raise ValueError(
            f"isolation must be auto, {', '.join(LEVELS)}; got {isolation!r}.{nearest(isolation, LEVELS)}"
        )
    enough: Sequence[str] = LEVELS if isolation == "auto" else LEVELS[: LEVELS.index(isolation) + 1]
    problems: dict[str, str] = {}
    for level in enough:
        reason = problem(level, python)
        if reason is None:
            _tell(level, problems)
            return level
        problems[level] = reason
    raise ValueError(
        f"isolation={isolation!r}: no such isolation here. {_listed(problems)} Install bubblewrap, allow user "
        "namespaces (sysctl kernel.unprivileged_userns_clone or kernel.apparmor_restrict_unprivileged_userns; in a "
        "container, the right to make them), or run code elsewhere: a2tgpo serve-python there, remote= here."
    )


def _listed(problems: dict[str, str]) -> str:
    return " ".join(f"{level}: {reason}." for level, reason in problems.items())


@cache
def _say_once(level: str, text: str) -> None:
    logger.log(logging.WARNING if level == PROCESS else logging.INFO, text)


def _tell(level: str, problems: dict[str, str]) -> None:
    if level == PROCESS:
        open_doors = "; ".join(threat.what for threat in THREATS.values() if threat.not_stopped_at)
        _say_once(
            level,
            "THE CODE OF THE POLICY IS ONLY WEAKLY ISOLATED (level process). Depending on who trains, it can "
            f"{open_doors}. Stronger levels do not work here: {_listed(problems)}",
        )
    else:
        _say_once(level, f"The code of the policy is isolated at the level {level}.")
