"""rows, and their environments once they are reset -> the answers that gains are measured against and rewards read.

An environment that owns its data declares `answer` in its class, and its `reset` sets it:

    class Riddles:
        answer: str | list[str] | None = None

        def reset(self, riddle: int, **row) -> str:
            question, self.answer = RIDDLES[riddle]
            return question

Its answer wins over the data set's; None leaves the answer to the data set. Environments are reset concurrently, in no
order: let the row, or a seed in it, choose from what they share, so that all rollouts of a group get the same.
"""

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn


# The answer if an environment could not be reset: the rollout is left out, but scored in the same forward as others.
UNKNOWN = "unknown"

Row = dict[str, Any]


class Answer(NamedTuple):
    """An answer, and where it was found."""

    text: Any
    where: str


def declares_answer(kind: type) -> bool:
    """Whether environments of this class give the right answer. A method named `answer` is a tool instead."""
    return hasattr(kind, "answer") and not inspect.isroutine(kind.answer)


def forget_answer(environment: Any) -> None:
    """Clear the old answer before the next reset, which may set none: it does not fit the next question."""
    kind = type(environment)
    if declares_answer(kind) and not isinstance(kind.answer, property):
        object.__setattr__(environment, "answer", kind.answer)  # works for frozen classes too


def find_answer(row: Mapping[str, Any], column: str, environment: Any = None, failed: bool = False) -> Answer:
    """The answer to a row. `failed`: whether the environment could not be reset and still holds an old answer."""
    if declares_answer(type(environment)):
        text = UNKNOWN if failed else environment.answer
        if column not in row or (text is not None and not failed):
            return Answer(text, f"The attribute answer of {type(environment).__name__}, after reset,")
    return Answer(row.get(column), f"Column {column!r} of a row of the batch")


def rows_with_answers(rows: Sequence[Row], answers: Sequence[Answer]) -> list[Row]:
    """The rows as rewards and records get them: all have "answer", wherever it comes from, if any has one.

    The column that `answer_column` names, and an environment, override a column named "answer".
    """
    if all(answer.text is None for answer in answers):
        return list(rows)
    return [{**row, "answer": answer.text} for row, answer in zip(rows, answers, strict=True)]


# ---- what rewards read besides

# Arguments that the parent gives to each reward function, and columns that it does not pass on.
GIVEN = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
KEPT_BACK = {"prompt", "completion", "completion_ids"}


def check_reward_arguments(functions: Iterable[Any], name: str, columns: Collection[str], answer_column: str) -> None:
    """Check that a data set has a column for each argument without a default, before anything is rolled out."""
    there = GIVEN | ({*columns} - KEPT_BACK) | ({"answer"} if answer_column in columns else set())
    for function in functions:
        for argument in _required(function):
            if argument not in there:
                raise ValueError(
                    f"The {name} data set has no column {argument!r}; it has {', '.join(columns)}. The reward "
                    f"{getattr(function, '__name__', function)} has an argument of this name without a default: add "
                    "the column, or give it one. Right answers may have another name: set answer_column."
                )


def _required(function: Any) -> list[str]:
    """The arguments of a reward function that have no default; a reward model has none."""
    if not callable(function) or isinstance(function, nn.Module):
        return []
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind in by_name and one.default is one.empty]
