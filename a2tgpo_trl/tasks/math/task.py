r"""GSM8K or MATH -> the task of solving its problems with Python.

The answer goes into `<answer>` tags, as in the gain's `probe_template`; `math_equal` also reads a `\boxed{}` without
tags, but the policy loses a little for the form.
"""

from pathlib import Path
from typing import Any

from ...rewards.math_answers import math_equal
from ...rewards.text import answer_format
from .. import Task
from . import data


# A raw string: otherwise \b of \boxed is a backspace, and \f of \frac a form feed.
INSTRUCTION = (
    r"Solve the problem. Use the Python tool to compute: variables are kept from one call to the next. Then reply "
    r"with <answer>ANSWER</answer>, where ANSWER is what you would write in \boxed{}, such as 42 or \frac{3}{4}."
)


def gsm8k(path: str | Path | None = None, **python: Any) -> Task:
    """GSM8K: 7,473 word problems to train on and 1,319 to test on, with whole numbers as answers.

    Args:
        path: Folder with its files (train*, test*; .jsonl or .parquet). None: openai/gsm8k on the hub.
        python: Settings of `tools.python.python_sessions`, such as timeout=10 or remote="http://sandbox:8400".
    """
    splits = data.load_splits(path, "openai/gsm8k", "main")
    return _task(splits, "question", data.gsm8k_answer, python)


def math(path: str | Path | None = None, **python: Any) -> Task:
    """MATH: 7,500 competition problems to train on and 5,000 to test on, in five levels, with LaTeX answers.

    Args:
        path: Folder with its files (train*, test*; .jsonl, .json or .parquet). None: the copy
            DigitalLearningGmbH/MATH-lighteval on the hub.
        python: Settings of `tools.python.python_sessions`, such as timeout=10 or remote="http://sandbox:8400".
    """
    splits = data.load_splits(path, "DigitalLearningGmbH/MATH-lighteval", None)
    return _task(splits, "problem", data.math_answer, python)


def prompt(problem: str) -> list[dict[str, str]]:
    """The prompt for a problem."""
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": problem}]


def _task(splits, column: str, answer_of, python: dict[str, Any]) -> Task:
    from ...tools.python import python_sessions

    train, test = (data.questions(splits[split], column, answer_of, prompt) for split in data.SPLITS)
    data.warn_of_overlap(splits["train"][column], splits["test"][column])
    return Task(
        train_dataset=train,
        test_dataset=test,
        environment_factory=python_sessions(**python),
        reward_funcs=[math_equal, answer_format],
        reward_weights=[1.0, 0.1],
        group_by="level" if "level" in test.column_names else None,
    )
