r"""completions -> final answers -> compared as mathematics with the accepted ones -> one float a rollout.

A final answer stands in `<answer>` tags or, where there are none, in the last `\boxed{}`. What is the same text, or
the same number, is equal; the rest is judged by the library math-verify, which reads LaTeX into SymPy.

A policy may write anything, and SymPy may work on it for ever, take all memory, or die. So it works in processes of
their own, each with a bound on its memory, which are killed when they take longer than `SECONDS`. What cannot be
judged in that time is wrong, and so is what is longer than `LONGEST` characters.
"""

import importlib.util
import os
import re
import resource
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, lru_cache

from .rewards import Answer, Completion, extract_answer, final_text
from .tools.process import ProcessDied, ProcessWorker
from .tools.results import ToolFailed


if importlib.util.find_spec("math_verify") is None:
    raise ImportError("math_equal judges answers with the library math-verify: pip install 'a2tgpo_trl[math]'.")

SECONDS = 3.0  # for one answer
STARTING = 120.0  # for a process to import SymPy, on a busy machine
LONGEST = 1000
MEMORY = 4 << 30  # bytes of address space of a process
PROCESSES = min(4, os.cpu_count() or 1)

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?")
_FRACTION = re.compile(r"([-+]?\d+)/(\d+)")
# What changes how an answer looks, and not what it says.
_LOOKS = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;:]|\\?\$|\\displaystyle|\s+")
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}")
# Python -> LaTeX, for policies that copy what Python printed.
_PYTHON = (
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\*"), r" \\cdot "),
    (re.compile(r"\^\(([^()]*)\)"), r"^{\1}"),
    (re.compile(r"\bsqrt\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])pi\b"), r"\\pi "),
    (re.compile(r"(?<=\d)[eE]([-+]?\d+)\b"), r" \\cdot 10^{\1}"),
)


def math_equal(completions: Sequence[Completion], answer: Sequence[Answer], **kwargs) -> list[float]:
    r"""1 where the final answer says the same as an accepted one, in mathematics, else 0.

    Example: "<answer>0.5</answer>" or "so it is $\boxed{\frac{2}{4}}$" for "1/2" -> 1; "<answer>0.4999</answer>" -> 0
    """
    pairs = list(zip(completions, answer, strict=True))
    return list(_threads().map(lambda pair: _is_accepted(*pair), pairs))


def final_answer(completion: Completion) -> str | None:
    r"""What is in the answer tags, or else in the last \boxed{} of the last assistant message; None without either.

    Example: "<answer>$\boxed{7}$</answer>" -> "7"; "first \boxed{1}, then \boxed{\frac{1}{2}}" -> "\frac{1}{2}"
    """
    tagged = extract_answer(completion)
    text = final_text(completion) if tagged is None else tagged
    boxed = last_boxed(text)
    return tagged if boxed is None else boxed


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{} holds whose braces are closed.

    Example: r"\boxed{\{1, 2\}} and \boxed{\frac{1}{2}}" -> r"\frac{1}{2}"; r"\boxed{1" -> None
    """
    contents = (_up_to_closing_brace(text, start.end()) for start in reversed(list(_BOXED.finditer(text))))
    return next((content for content in contents if content is not None), None)


def _up_to_closing_brace(text: str, start: int) -> str | None:
    depth, i = 1, start
    while i < len(text):
        if text[i] == "\\":
            i += 1  # \{ and \} are no braces, and \\ no beginning of one
        elif text[i] in "{}":
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[start:i].strip()
        i += 1
    return None


def _is_accepted(completion: Completion, answer: Answer) -> float:
    accepted = [answer] if isinstance(answer, str) else list(answer)
    if not accepted:
        raise ValueError("The column 'answer' holds an empty list: there is nothing to compare with. Drop the row.")
    given = final_answer(completion)
    if given is None or not given or len(given) > LONGEST:
        return 0.0
    return float(any(equal(text, given) for text in accepted))


# ---- two answers


@lru_cache(maxsize=65_536)
def equal(accepted: str, given: str) -> bool:
    r"""Whether two answers say the same.

    Example: "1,234" and "1234.0"; r"\text{ Evelyn}" and "Evelyn"; r"\frac{1}{2}" and "1/2"; "[1, 2)" is not "(1, 2)"
    """
    first, second = plain(accepted), plain(given)
    if first == second:
        return True
    numbers = number(first), number(second)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if _up_to_closing_brace(given + "}", 0) != given.strip():
        return False  # its braces would close ours, and hide the rest of it
    return _JUDGES.own.verdict(accepted, given)


def plain(text: str) -> str:
    r"""An answer without what only changes its looks.

    A word becomes lower case.

    Example: r"$\left( 1,\, \dfrac{1}{2} \right)$" -> r"(1,\frac{1}{2})"; r"\text{Even}." -> "even"
    """
    text = _LOOKS.sub("", _WRAPPED.sub(r"\1", text)).replace("dfrac", "frac").replace("tfrac", "frac")
    text = text.removesuffix(".")
    return text.lower() if text.isalpha() else text


def number(text: str) -> Fraction | None:
    """The number that a plain text is, if it is one as it stands.

    Example: "1,234.50" -> 1234.5; "-3/6" -> -1/2; "12%", "1,23" and "x" -> None
    """
    quotient = _FRACTION.fullmatch(text)
    if quotient:
        return Fraction(int(quotient[1]), int(quotient[2])) if int(quotient[2]) else None
    return Fraction(text.replace(",", "")) if any(c.isdigit() for c in text) and _NUMBER.fullmatch(text) else None


# ---- judges: processes that may be killed


class Judge:
    """A process that compares answers, and another one in its place when it had to be killed."""

    def __init__(self) -> None:
        self._process: ProcessWorker | None = None

    def verdict(self, accepted: str, given: str) -> bool:
        """Whether they are equal, as far as can be said in `SECONDS`."""
        if self._process is None or not self._process.alive:
            self._process = _started()
        try:
            return _within(SECONDS, self._process, accepted, given) == "True"
        except (ProcessDied, ToolFailed):  # it was killed, it died, or what was to be read was too much for it
            return False


def _started() -> ProcessWorker:
    process = ProcessWorker(compare)
    process.start()
    if _within(STARTING, process, "x", "x") != "True":
        raise RuntimeError("math-verify does not find x equal to x: is another version installed than setup.cfg asks?")
    return process


def _within(seconds: float, process: ProcessWorker, accepted: str, given: str) -> str:
    bell = threading.Timer(seconds, process.kill)
    bell.daemon = True
    bell.start()
    try:
        return process.call({"accepted": accepted, "given": given})
    finally:
        bell.cancel()


@cache
def _threads() -> ThreadPoolExecutor:
    """Those that wait for judges. They stay for the run, and a judge with each that has needed one."""
    return ThreadPoolExecutor(PROCESSES, "math_equal")


class _Judges(threading.local):
    """One for each thread."""

    def __init__(self) -> None:
        self.own = Judge()


_JUDGES = _Judges()


# ---- in the process


def compare(accepted: str, given: str) -> bool:
    """Whether math-verify finds them equal, both read as LaTeX and then with Python's signs made LaTeX's."""
    from math_verify import verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return any(verify(gold, target, timeout_seconds=60) for gold in _read(accepted) for target in _read(given))


def _read(text: str) -> Iterator[list]:
    from math_verify import LatexExtractionConfig, parse

    latex = text
    for pattern, replacement in _PYTHON:
        latex = pattern.sub(replacement, latex)
    for form in dict.fromkeys((text, latex)):
        # Ours is the limit of time: theirs rings by signals, and is to stay silent.
        yield parse(rf"\boxed{{{form}}}", [LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=60)
