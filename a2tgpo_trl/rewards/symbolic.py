r"""two answers in LaTeX -> whether the library math-verify, which reads them into SymPy, finds them equal.

A policy may write anything, and SymPy may then run forever, take all memory, or crash. So it runs in separate
processes with a memory limit, which are killed when they take longer than `SECONDS`. They are started like the
processes of tools, and not by `multiprocessing`, which would run the user's script again in each of them.
"""

import importlib.util
import logging
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..tools.process import ProcessDied, ProcessWorker
from ..tools.results import ToolFailed


if importlib.util.find_spec("math_verify") is None:
    raise ImportError("math_equal compares answers with the library math-verify: pip install 'a2tgpo_trl[math]'.")

logger = logging.getLogger(__name__)

SECONDS = 3.0  # for one comparison
STARTING = 120.0  # for a process to import SymPy, on a busy machine
MEMORY = 4 << 30  # bytes of address space of a process

# Python -> LaTeX, for policies that copy Python's output.
_PYTHON = (
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\*"), r" \\cdot "),
    (re.compile(r"\^\(([^()]*)\)"), r"^{\1}"),
    (re.compile(r"\bsqrt\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])pi\b"), r"\\pi "),
    (re.compile(r"(?<=\d)[eE]([-+]?\d+)\b"), r" \\cdot 10^{\1}"),
)


class Undecided(Exception):
    """A process could not be started, was killed, or died before it had compared two answers."""


class Symbolic(threading.local):
    """Compares answers in one process per thread, which is replaced after it had to be killed."""

    process: ProcessWorker | None = None

    def equal(self, accepted: str, given: str) -> bool:
        """Whether two answers are equal. Raises `Undecided` if that is not known within `SECONDS`."""
        if self.process is None or not self.process.alive:
            try:
                self.process = _started()
            except (ProcessDied, OSError) as error:  # the machine may briefly be short of memory or processes
                logger.warning(f"math_equal: a process could not be started ({error}).")
                raise Undecided from error
        try:
            return _call(self.process, accepted, given, SECONDS)
        except ToolFailed:  # the text is not mathematics, or needs too much memory
            return False
        except ProcessDied as error:
            raise Undecided from error


def _started() -> ProcessWorker:
    process = ProcessWorker(compare)
    with _time_limit(STARTING, process):
        process.start()
    if not _call(process, "x", "x", STARTING):
        raise RuntimeError("math-verify does not find x equal to x: is its version one that setup.cfg allows?")
    return process


def _call(process: ProcessWorker, accepted: str, given: str, seconds: float) -> bool:
    with _time_limit(seconds, process):
        return process.call({"accepted": accepted, "given": given}) == "True"


@contextmanager
def _time_limit(seconds: float, process: ProcessWorker) -> Iterator[None]:
    """Kill the process if the body takes longer than `seconds`."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# ---- in the process


def compare(accepted: str, given: str) -> bool:
    """Whether math-verify finds two answers equal, read as LaTeX or with Python's notation turned into LaTeX."""
    from math_verify import verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return any(verify(gold, target, timeout_seconds=60) for gold in _read(accepted) for target in _read(given))


def _read(text: str) -> Iterator[list]:
    from math_verify import LatexExtractionConfig, parse

    latex = text
    for pattern, replacement in _PYTHON:
        latex = pattern.sub(replacement, latex)
    for form in dict.fromkeys((text, latex)):
        # This module sets the time limit: math-verify's own works by signals, and must not trigger.
        yield parse(rf"\boxed{{{form}}}", [LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=60)
