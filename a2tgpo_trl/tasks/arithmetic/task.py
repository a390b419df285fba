"""seed -> problems -> the task of solving them with Python."""

from typing import Any

from datasets import Dataset

from ...rewards.text import answer_format, exact_number
from .. import Task, check_number
from ..rng import Rng
from .problems import Problem, make_problem


INSTRUCTION = "Work in Python, one step a call, then reply with <answer>NUMBER</answer>."
TRAIN_STEPS = (1, 2, 3, 4)
TEST_STEPS = (2, 3, 4)


def arithmetic(seed: int = 0, train_questions: int = 2048, test_questions: int = 300, **python: Any) -> Task:
    """Training problems of one to four steps, and test problems of two to four steps, in equal parts.

    The two sets have no problem in common, nor a product that a problem begins with. `python`: settings of
    `tools.python.python_sessions`, such as isolation="bubblewrap" or remote="http://sandbox:8400".
    """
    from ...tools.python import python_sessions

    check_number("train_questions", train_questions)
    check_number("test_questions", test_questions)
    return Task(
        train_dataset=_questions("train", TRAIN_STEPS, train_questions, seed),
        test_dataset=_questions("test", TEST_STEPS, test_questions, seed),
        environment_factory=python_sessions(**python),
        reward_funcs=[exact_number, answer_format],
        reward_weights=[1.0, 0.1],
        group_by="steps",
    )


def prompt(problem: Problem) -> list[dict[str, str]]:
    """The prompt for a problem."""
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": problem.text}]


def _questions(part: str, steps: tuple[int, ...], number: int, seed: int) -> Dataset:
    rng = Rng("arithmetic", part, seed)
    problems = [make_problem(steps[i % len(steps)], part, rng) for i in range(number)]
    return Dataset.from_list(
        [
            {"prompt": prompt(problem), "answer": problem.answer, "steps": 1 + len(problem.steps)}
            for problem in problems
        ]
    )
