"""rows, and their environments once they are reset -> the answers that gains are measured against and rewards read.

An environment that owns its data declares `answer` in its class, and its `reset` sets it:

    class Riddles:
        answer: str | list[str] | None = None

        def reset(self, riddle: int, **row) -> str:
            question, self.answer = RIDDLES[riddle]
            return question

What it says wins over the data set; None leaves the answer to the data set. Environments are reset at once, in no
order: the row, or a seed in it, chooses from what they share, so that all rollouts of a group get the same.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


# Of a rollout whose environment could not be reset. It is left out, but scored in the same forward as the others.
UNKNOWN = "unknown"

Row = dict[str, Any]


class Answer(NamedTuple):
    """An answer as it was found, and where."""

    text: Any
    where: str


def declares_answer(kind: type) -> bool:
    """Whether environments of this class say what the right answer is. A method of that name is a tool."""
    return hasattr(kind, "answer") and not inspect.isroutine(kind.answer)


def forget_answer(environment: Any) -> None:
    """Before its next reset, which may set none: the answer of before is not that of the next question."""
    kind = type(environment)
    if declares_answer(kind) and not isinstance(kind.answer, property):
        object.__setattr__(environment, "answer", kind.answer)  # also where the class is a frozen one


def find_answer(row: Mapping[str, Any], column: str, environment: Any = None, failed: bool = False) -> Answer:
    """The answer to a row. `failed`: whether the environment could not be reset, and holds an answer of before."""
    if declares_answer(type(environment)):
        text = UNKNOWN if failed else environment.answer
        if column not in row or (text is not None and not failed):
            return Answer(text, f"The attribute answer of {type(environment).__name__}, once it was reset,")
    return Answer(row.get(column), f"Column {column!r} of a row that arrived for generation")


def rows_with_answers(rows: Sequence[Row], answers: Sequence[Answer]) -> list[Row]:
    """The rows as rewards and records have them: all have "answer", wherever it comes from, if any has one.

    A column of that name gives way to the one that `answer_column` names, and to an environment.
    """
    if all(answer.text is None for answer in answers):
        return list(rows)
    return [{**row, "answer": answer.text} for row, answer in zip(rows, answers, strict=True)]
