"""a trivial snippet -> calls per second of Python sessions, seconds of a fresh session, seconds of `python -c`."""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from a2tgpo_trl.cli.bench import add_numbers, show, table
from a2tgpo_trl.cli.machine import device_name
from a2tgpo_trl.tools.python.levels import LEVELS, try_level
from a2tgpo_trl.tools.python.pool import Pool, Settings
from a2tgpo_trl.tools.python.session import LocalSession


SNIPPET = "x = 1 + 1\nx"


@dataclass(frozen=True)
class Load:
    """Numbers of concurrent sessions, of calls of each, of fresh sessions, and of programs."""

    sessions: int
    calls: int
    fresh: int
    programs: int


@dataclass(frozen=True)
class PythonTimes:
    calls_a_second: float  # of all sessions together
    warm_seconds: float  # of a session with one call, when an interpreter was kept ready
    cold_seconds: float  # when none was


def levels() -> dict[str, str | None]:
    """The levels of isolation, each with why it does not work here, or None."""
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
    """Seconds that `calls` calls of each session take, one thread per session, with interpreters already started."""

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
    """Median seconds of one-call sessions, run in sequence so that the pool gets only the time that calls leave it."""
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


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Times calls of Python sessions against a fresh python -c for each.")
    numbers = (
        ("--sessions", 1, 4, "sessions at once"),
        ("--calls", 1, 300, "calls of each session"),
        ("--fresh", 1, 40, "sessions of one call, one after the other"),
        ("--programs", 1, 20, "runs of python -c"),
    )
    add_numbers(parser, numbers)
    args = parser.parse_args(words)
    load = Load(args.sessions, args.calls, args.fresh, args.programs)
    show(device_name(torch.device("cpu")))
    program = program_seconds(load.programs)
    heads = ["level", "calls\na second", "python -c /\na call", "fresh session,\nms", "the same,\nnone warm, ms"]
    lines = []
    for level, why in levels().items():
        if why is not None:
            show(f"{level}: does not work here: {why}")
            continue
        found = measure(level, load)
        numbers_of_calls = (f"{found.calls_a_second:.0f}", f"{program * found.calls_a_second:.0f}")
        times = (f"{found.warm_seconds * 1000:.1f}", f"{found.cold_seconds * 1000:.1f}")
        lines.append([level, *numbers_of_calls, *times])
    show(f"{load.sessions} sessions of {load.calls} calls; python -c takes {program * 1000:.1f} ms")
    show(table(heads, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
