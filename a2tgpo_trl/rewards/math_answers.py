r"""completions -> final answers -> compared as mathematics with the accepted ones -> one float per rollout.

A final answer is in `<answer>` tags or, if there are none, in the last `\boxed{}`. Answers are equal if they are the
same text or the same number; the library math-verify compares all others (`symbolic.py`). Answers that it cannot
compare in time are wrong, and so are answers longer than `LONGEST` characters.
"""

import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, lru_cache

from .symbolic import Symbolic, Undecided
from .text import Answer, Completion, braces, extract_answer, final_text, last_boxed


logger = logging.getLogger(__name__)

ATTEMPTS = 2  # a machine may be busy
LONGEST = 1000
PROCESSES = min(4, os.cpu_count() or 1)

_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?")
_FRACTION = re.compile(r"([-+]?)(?:(\d+) )?(\d+)/(\d+)")  # also a mixed number: 3 1/2
# LaTeX that changes how an answer looks, but not what it says.
_LOOKS = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;:]|\\?\$|\\displaystyle")
_SPACE = re.compile(r"(?<![\d,])\s+|\s+(?!\d)")  # except before a digit after a digit or comma: "1 2" is not 12
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}")


def math_equal(completions: Sequence[Completion], answer: Sequence[Answer], **kwargs) -> list[float]:
    r"""1 if the final answer equals an accepted one mathematically, else 0.

    Example: "<answer>0.5</answer>" or "so it is $\boxed{\frac{2}{4}}$" for "1/2" -> 1; "<answer>0.4999</answer>" -> 0
    """
    pairs = list(zip(completions, answer, strict=True))
    return list(_threads().map(lambda pair: _is_accepted(*pair), pairs))


@cache
def _threads() -> ThreadPoolExecutor:
    """The threads that wait for comparisons. They last for the run, each with its own process if it needed one."""
    return ThreadPoolExecutor(PROCESSES, "math_equal")


def final_answer(completion: Completion) -> str | None:
    r"""The text in the answer tags, or else in the last \boxed{} of the last assistant message; None without either.

    Example: "<answer>$\boxed{7}$</answer>" -> "7"; "first \boxed{1}, then \boxed{\frac{1}{2}}" -> "\frac{1}{2}"
    """
    tagged = extract_answer(completion)
    text = final_text(completion) if tagged is None else tagged
    boxed = last_boxed(text)
    return tagged if boxed is None else boxed


def _is_accepted(completion: Completion, answer: Answer) -> float:
    accepted = [answer] if isinstance(answer, str) else list(answer)
    if not accepted:
        raise ValueError("The column 'answer' holds an empty list: there is nothing to compare with. Drop the row.")
    given = final_answer(completion)
    if given is None or not given or len(given) > LONGEST:
        return 0.0
    return float(any(equal(text, given) for text in accepted))


# ---- two answers


_symbolic = Symbolic()


def equal(accepted: str, given: str) -> bool:
    r"""Whether two answers mean the same.

    Example: "1,234" and "1234.0"; r"\text{ Evelyn}" and "Evelyn"; r"\frac{1}{2}" and "1/2"; "[1, 2)" is not "(1, 2)"
    """
    for _ in range(ATTEMPTS):
        try:
            return _equal(accepted, given)
        except Undecided:
            continue
    logger.info(f"{given!r:.80} could not be compared with {accepted!r:.80} in time: it counts as wrong.")
    return False


@lru_cache(maxsize=65_536)  # exceptions are not cached
def _equal(accepted: str, given: str) -> bool:
    first, second = plain(accepted), plain(given)
    if first == second:
        return True
    numbers = number(first), number(second)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if not is_comparable(accepted, given):
        return False
    if numbers[0] is not None:  # math-verify takes 3 1/2 for 31/2
        accepted = rf"\frac{{{numbers[0].numerator}}}{{{numbers[0].denominator}}}"
    return _symbolic.equal(accepted, given)


def plain(text: str) -> str:
    r"""An answer without LaTeX that only changes its looks.

    A word becomes lower case.

    Example: r"$\left( 1,\, \dfrac{1}{2} \right)$" -> r"(1,\frac{1}{2})"; r"\text{Even}." -> "even"
    """
    text = _SPACE.sub("", _LOOKS.sub("", _WRAPPED.sub(r"\1", text)).strip())
    text = text.replace("dfrac", "frac").replace("tfrac", "frac")
    text = text.removesuffix(".")
    return text.lower() if text.isalpha() else text


def number(text: str) -> Fraction | None:
    """The number that a plain text writes, or None if it is not exactly a number.

    Example: "1,234.50" -> 1234.5; "-3/6" -> -1/2; "3 1/2" -> 7/2; "12%", "1,23", "1 2" and "x" -> None
    """
    found = _FRACTION.fullmatch(text)
    if found:
        sign, whole, above, below = found[1], int(found[2] or 0), int(found[3]), int(found[4])
        return (-1 if sign == "-" else 1) * (whole + Fraction(above, below)) if below else None
    return Fraction(text.replace(",", "")) if any(c.isdigit() for c in text) and _NUMBER.fullmatch(text) else None


# ---- answers on which math-verify is not asked, because it would be too lenient

_GAP = re.compile(r"[\d,] \d")
_TIME = re.compile(r"\d:\d")
_BASE = re.compile(r"_\{?(\w+)\}?")
_NAME = re.compile(r"[a-zA-Z](_?\w+)?(\([\w, ]*\))?")
# A number and what follows it, if that is not a formula.
_MEASURE = re.compile(r"[-+]?[\d.,/]+(?:[eE][-+]?\d+)?([a-zA-Z(%].*|\\%)?")
_RESULT = re.compile(r"-?([\d.,/]+|\\frac\{?\d+\}?\{?\d+\}?)")
_SCIENTIFIC = re.compile(r"\\(times|cdot)10\^")
_UNDONE = re.compile(r"\\(sum|int|prod|binom|lim|cdot|times|div)|[!*×·]|\d[-+]\d")


def is_comparable(accepted: str, given: str) -> bool:
    r"""Whether math-verify can be trusted with two answers. It ignores what makes these different:

    what would end the box    12}{13         for 12
    lists                     1, 234         for 1234
    times                     20:60          for 10:30
    bases of numbers          5_9            for 5_8
    kinds of brackets         \{1, 2\}       for (1, 2)
    equations of numbers      6 = 5          for 5
    units and percent         30 hours       for 30 minutes; 5% for 5; 5 (not 6) for 5
    what is left to work out  123 * 456      for 56088; powers, roots and fractions are numbers as they are
    """
    first, second = plain(accepted), plain(given)
    return (
        len(list(braces(given))) == given.count("{") - given.count(r"\{") == given.count("}") - given.count(r"\}")
        and not (number(first) is not None and _GAP.search(second))
        and not _TIME.search(first + " " + second)
        and _BASE.findall(first) == _BASE.findall(second)
        and {_kind(first), _kind(second)} != {"set", "interval"}
        and ("=" in first or all(map(_NAME.fullmatch, second.split("=")[:-1])))
        and _same_measure(first, second)
        and not (_RESULT.fullmatch(first) and _UNDONE.search(_SCIENTIFIC.sub("", second)))
    )


def _kind(text: str) -> str | None:
    """The kind of an answer that begins with a bracket; a point looks like an interval."""
    return "set" if text.startswith(r"\{") else "interval" if text.startswith(("(", "[")) else None


def _same_measure(first: str, second: str) -> bool:
    """Whether units agree: equal, only in the accepted answer, or only in the given one and a word (5 cm for 5)."""
    found, expected = _MEASURE.fullmatch(second), _MEASURE.fullmatch(first)
    if found is None or expected is None or found[1] == expected[1]:
        return True
    if found[1] is None:
        return True
    return expected[1] is None and found[1].isalpha()
