"""a trivial snippet -> calls a second of Python sessions, seconds of a fresh session, seconds of `python -c`."""

import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..tools.python.levels import LEVELS, try_level
from ..tools.python.pool import Pool, Settings
from ..tools.python.session import LocalSession


SNIPPET = "x = 1 + 1\nx"


@dataclass(frozen=True)
class Load:
    """Numbers of sessions at once, of calls of each, of fresh sessions, and of programs."""

    sessions: int
    calls: int
    fresh: int
    programs: int


@dataclass(frozen=True)
class PythonTimes:
    calls_a_second: float  # of all sessions together
    warm_seconds: float  # of a session with one call, where an interpreter was kept ready
    cold_seconds: float  # where none was


def levels() -> dict[str, str | None]:
    """The levels of isolation, and why one does not work here."""
    return {level: try_level(level, sys.executable).problem for level in LEVELS}


def measure(level: str, load: Load) -> PythonTimes:
    """Times of one level."""
    warm, cold = Pool(Settings(level, warm=load.sessions)), Pool(Settings(level, warm=0))
    try:
        sessions = [LocalSession(warm) for _ in range(load.sessions)]
        rate = load.sessions * load.calls / _together(sessions, load.calls)
        return PythonTimes(rate, _fresh(warm, load.fresh), _fresh(cold, load.fresh))
    finally:
        warm.close()
        cold.close()


def _together(sessions: list[LocalSession], calls: int) -> float:
    """Seconds of so many calls of each session, each from a thread of its own; the interpreters are there already."""

    def call(session: LocalSession) -> None:
        for _ in range(calls):
            assert session.run(SNIPPET) == "2"

    with ThreadPoolExecutor(len(sessions)) as threads:
        for session in sessions:
            session.run(SNIPPET)
        start = time.perf_counter()
        list(threads.map(call, sessions))
        return time.perf_counter() - start


def _fresh(pool: Pool, number: int) -> float:
    """Seconds of a session with one call, one after the other, so that the pool has as much time as calls leave it."""
    LocalSession(pool).run(SNIPPET)  # starts the fork server
    seconds = []
    for _ in range(number):
        start = time.perf_counter()
        session = LocalSession(pool)
        session.run(SNIPPET)
        session.forget()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def program_seconds(number: int) -> float:
    """Seconds of the same snippet in a fresh program."""
    seconds = []
    for _ in range(number):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", SNIPPET], check=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
