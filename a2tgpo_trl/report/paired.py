"""two evaluations of the same questions -> by how much the policies differ, and whether that could be chance.

Questions differ far more than policies do. If both policies were asked the same questions, those on which they
disagree tell whether the difference is chance.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from ..errors import shown
from ..lookup import nearest
from ..rewards import RIGHT_OR_WRONG
from .scores import RIGHT_PER_CALL, Estimate, bootstrap, columns_of, grouped, has_lines, per_question


Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Difference:
    """The second policy's score less the first's, over the questions that have both."""

    first: float
    second: float
    difference: Estimate
    # Only for scores of 0 or 1 with one rollout a question: how many only one policy has right, and McNemar's p.
    only_first: int | None = None
    only_second: int | None = None
    p: float | None = None


@dataclass(frozen=True)
class Paired:
    """Differences by the name of the score: over all questions, and for each value of a column."""

    everything: dict[str, Difference]
    groups: dict[str, dict[str, Difference]]

    @classmethod
    def of(cls, first: Records, second: Records, column: str | None = None) -> "Paired":
        check_same_questions(first, second)
        if column is not None:
            check_column([*first, *second], column)
            if _by_row(first, column) != _by_row(second, column):
                raise ValueError(f"{column!r} is not a column of the questions: the two evaluations differ in it.")
        parts, others = grouped(first, column), grouped(second, column)
        groups = {f"{column} {value}": differences(part, others[value]) for value, part in parts.items()}
        return cls(differences(first, second), groups)


def _by_row(records: Records, column: str) -> dict[int, set[Any]]:
    """The values in a column, by question."""
    found: dict[int, set[Any]] = {}
    for record in records:
        found.setdefault(record["row"], set()).add(columns_of(record)[column])
    return found


def check_column(records: Records, column: str) -> None:
    """Raise an error if a question lacks a column, or if a table cannot have a line for its value there."""
    for record in records:
        columns, row = columns_of(record), record["row"]
        if column not in columns:
            raise ValueError(f"The question of row {row} has no column {column!r}.{nearest(column, columns)}")
        if not has_lines(columns[column]):
            raise ValueError(
                f"Row {row} holds {shown(columns[column])} in column {column!r}, but questions are compared by text "
                "and numbers only. Name another column (--by), or none."
            )


def mcnemar(only_first: int, only_second: int) -> float:
    """The probability of so uneven a split of disagreements if each is as likely to go either way: exact, two-sided.

        p = min(1, 2 sum_{i <= min(b, c)} C(n, i) / 2^n)      n = b + c disagreements

    Example: 1 and 8 -> 2 (1 + 9) / 512 = 0.0390625; 3 and 3 -> 1; 0 and 0 -> 1
    """
    number, fewer = only_first + only_second, min(only_first, only_second)
    term, ways = 1, 1  # C(n, 0)
    for i in range(fewer):
        term = term * (number - i) // (i + 1)
        ways += term
    return min(1.0, 2 * ways / 2**number)


def differences(first: Records, second: Records) -> dict[str, Difference]:
    """The difference in each score that both have, paired by question."""
    one, other = per_question(first), per_question(second)
    single = all(len({record["row"] for record in records}) == len(records) for records in (first, second))
    found = {}
    # Right answers per call is a ratio of sums over questions, so a single question has none.
    for name in [name for name in one if name in other and name != RIGHT_PER_CALL]:
        rows = [row for row in one[name] if row in other[name]]
        if rows:
            values = [(one[name][row][0], other[name][row][0]) for row in rows]
            found[name] = _difference(values, counted=single and name in RIGHT_OR_WRONG)
    return found


def _difference(values: Sequence[tuple[float, float]], counted: bool) -> Difference:
    before, after = (math.fsum(column) / len(values) for column in zip(*values, strict=True))
    estimate = bootstrap([[(second - first, 1.0) for first, second in values]])
    if not counted:
        return Difference(before, after, estimate)
    only_first, only_second = (values.count(pair) for pair in ((1.0, 0.0), (0.0, 1.0)))
    return Difference(before, after, estimate, only_first, only_second, mcnemar(only_first, only_second))


def check_same_questions(first: Records, second: Records) -> None:
    """Check that both evaluations have the same rows, with the same question and answer in each."""
    asked, others = ({record["row"]: _question(record) for record in records} for records in (first, second))
    rows = sorted(asked.keys() ^ others.keys())
    if rows:
        raise ValueError(
            f"Only one of the two evaluations has row {rows[0]} ({len(asked):,} and {len(others):,} questions). "
            "Was one cut off? Resume it (a2tgpo eval), or ask both policies the same questions."
        )
    for row, question in asked.items():
        if question != others[row]:
            raise ValueError(
                f"Row {row} is a different question in each of the two evaluations. Ask both policies the same "
                "questions."
            )


def _question(record: Mapping[str, Any]) -> tuple[Any, Any]:
    """The last message of the prompt, and the answer; earlier messages may instruct other models differently."""
    prompt = record["prompt"]
    return prompt if isinstance(prompt, str) else prompt[-1], record.get("answer")


def difference_table(found: Paired, names: Sequence[str], title: str) -> Table:
    """Return a table with a line for each score, and below the first one a line for each group."""
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left", box=SIMPLE)
    table.caption = f"only right: by {names[0]} alone and by {names[1]} alone; p: McNemar's exact test of these"
    for head in ("mean", *names, "difference (95 %)", "only right", "p"):
        table.add_column(head, justify="left" if head == "mean" else "right", no_wrap=True)
    for i, (name, one) in enumerate(found.everything.items()):
        table.add_row(name.replace("_", " "), *_cells(one), style="bold" if i == 0 else None)
        for group, of_group in found.groups.items() if i == 0 else ():
            table.add_row(f"  {group}", *(_cells(of_group[name]) if name in of_group else ()))
    return table


def _cells(one: Difference) -> list[str]:
    cells = [f"{one.first:.3f}", f"{one.second:.3f}", str(one.difference)]
    return cells if one.p is None else [*cells, f"{one.only_first} and {one.only_second}", f"{one.p:.3g}"]
