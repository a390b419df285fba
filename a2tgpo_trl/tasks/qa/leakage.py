"""questions to train on and to test on -> those that are in both, reported, left out or refused.

Scores on questions that were trained on say nothing about other questions. Sets borrow from each other, so each
training question is compared with all test questions, whichever set they are from.
"""

import logging
from collections.abc import Sequence
from typing import Literal, get_args

from ...lookup import nearest
from ...rewards.text import normalize_answer
from .questions import Question


logger = logging.getLogger(__name__)

Leakage = Literal["leave_out", "refuse", "keep"]
SHOWN = 5


def without_leaks(train: Sequence[Question], test: Sequence[Question], leakage: Leakage) -> list[Question]:
    """Report training questions that are also tested on; return the others or all, or raise an error (`leakage`)."""
    if leakage not in get_args(Leakage):
        known = get_args(Leakage)
        raise ValueError(f"leakage must be one of {', '.join(known)}; got {leakage!r}.{nearest(str(leakage), known)}")
    leaks = leaked(train, test)
    if not leaks:
        return list(train)
    message = f"{len(leaks):,} of {len(train):,} training questions are also test questions:\n{_rows(leaks)}"
    if leakage == "refuse":
        raise ValueError(f"{message}\nLeave them out (leakage: leave_out), or name other sets.")
    logger.warning(f"{message}\n{'They are left out.' if leakage == 'leave_out' else 'They are trained on.'}")
    gone = {id(question) for question, _ in leaks} if leakage == "leave_out" else set()
    return [question for question in train if id(question) not in gone]


def leaked(train: Sequence[Question], test: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Training questions that are tested on, each with the first test question that has the same normalised words."""
    tested: dict[str, Question] = {}
    for question in test:
        tested.setdefault(_words(question.text), question)
    return [(question, tested[words]) for question in train if (words := _words(question.text)) in tested]


def _words(text: str) -> str:
    """Example: "Who wrote the  Iliad?" -> "who wrote iliad"; "???" stands for itself"""
    return normalize_answer(text) or text


def _rows(leaks: Sequence[tuple[Question, Question]]) -> str:
    lines = [f"  {one.where} is {other.where}: {one.text[:200]}" for one, other in leaks[:SHOWN]]
    return "\n".join([*lines, *([f"  and {len(leaks) - SHOWN:,} more"] if len(leaks) > SHOWN else [])])
