"""Tools that tests/tools/test_tool_runner.py has called in separate processes: they must be in a module."""

import os
import subprocess
import sys
import time


def double(number: int) -> int:
    return 2 * number


def process_id() -> int:
    return os.getpid()


def talk() -> str:
    print("this is no answer")  # noqa: T201
    os.write(1, b"nor is this\n")
    return f"said; {sys.stdin.read()!r} was there to read"


def leave(code: int) -> str:
    os._exit(code)


def leave_politely() -> str:
    sys.exit(3)


def fail(text: str) -> str:
    raise ConnectionRefusedError(text)


def hang(path: str) -> str:
    """Start a child, write down the ids of both, and hold the GIL in C code for longer than anybody waits."""
    child = subprocess.Popen(["sleep", "600"])
    with open(path + ".new", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename(path + ".new", path)
    return str(len(str(7**10**9)))


def sleep_or_double(number: int) -> int:
    if number < 0:
        time.sleep(600)
    return 2 * number


def open_files() -> str:
    kept.extend(open(os.devnull) for _ in range(50))
    return str(len(kept))


kept: list = []
