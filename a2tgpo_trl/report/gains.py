"""records with gains -> mean gains of turns that found what they needed, and of the others.

A turn found the answer if its results contain an accepted answer and no earlier results did. If rows have a column
`needed` (facts that lead to the answer, in the words of the passages), a turn found a fact if its results contain one
of these that no earlier results contained.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from ..errors import shown
from ..lookup import nearest
from ..rewards.text import whole_words
from .scores import Estimate, columns_of, drawn_again, estimate, ratios


WITH, WITHOUT = "the result holds the answer", "it does not"
ANSWER, FACT, AGAIN, NOTHING = (
    "found the answer",
    "found a needed fact",
    "made the same call again",
    "found nothing new",
)
NAMES = (WITH, WITHOUT, ANSWER, FACT, NOTHING, AGAIN)

Record = Mapping[str, Any]


@dataclass(frozen=True)
class GainedTurn:
    """A turn's gain, its question (a row number), and the two of `NAMES` that apply to it."""

    row: int
    gain: float
    names: tuple[str, str]


@dataclass(frozen=True)
class Gains:
    """Mean gains of turns by name, and the first name's mean less the second's; intervals over questions.

    Names that apply to no turn are left out. The difference is None if one of the two means is missing.
    """

    means: dict[str, Estimate]
    difference: Estimate | None


# ---- turns


def gained_turns(records: Iterable[Record], column: str = "answer") -> Iterator[GainedTurn]:
    """Yield each tool turn whose gain is known. `column` holds the accepted answers."""
    for record in records:
        if "gains" not in record:
            raise ValueError("These rollouts have no gains. Evaluate with --eval_gains true, into another folder.")
        columns = columns_of(record)
        if column not in columns:
            raise ValueError(
                f"These rollouts have no column {column!r} with answers.{nearest(column, columns)} Name it: --answer."
            )
        names = _names_of_turns(record, column)
        for gain, of_turn in zip(record["gains"], names, strict=False):  # the answer turn has no gain
            if gain is not None:
                yield GainedTurn(record["row"], gain, of_turn)


def _names_of_turns(record: Record, column: str) -> Iterator[tuple[str, str]]:
    answers, needed = [whole_words(text) for text in _accepted(record, column)], set(record.get("needed") or ())
    known, made = False, set[str]()
    for turn in record.get("turns", ()):  # absent without tools
        read, calls = _read(turn), {f"{call['name']} {call['arguments']}" for call in turn["calls"] or ()}
        holds, facts = any(one.search(read) for one in answers), {fact for fact in needed if fact in read}
        new = ANSWER if holds and not known else FACT if facts else NOTHING
        yield WITH if holds else WITHOUT, AGAIN if calls and calls <= made else new
        known, needed, made = known or holds, needed - facts, made | calls


def _accepted(record: Record, column: str) -> Sequence[str]:
    """The accepted answers of a record's question."""
    answer = columns_of(record)[column]
    accepted = [answer] if isinstance(answer, str) else answer
    if not isinstance(accepted, Sequence) or not all(isinstance(text, str) for text in accepted):
        raise ValueError(
            f"Row {record['row']}, column {column!r}, holds {shown(answer)}: an answer must be a string or a list of "
            "strings. Convert it (a column with dataset.map) and evaluate again, or name another column: --answer."
        )
    return accepted


def _read(turn: Mapping[str, Any]) -> str:
    return turn["read"] if turn["calls"] is None else "\n".join(call["result"] for call in turn["calls"])


# ---- means


def gains_of(records: Iterable[Record], column: str = "answer") -> Gains:
    """Return mean gains with bootstrap intervals: questions are drawn with replacement, each with all its turns."""
    turns = list(gained_turns(records, column))
    if not turns:
        raise ValueError("No turn of these rollouts called a tool, so none has a gain.")
    questions = {row: place for place, row in enumerate(dict.fromkeys(turn.row for turn in turns))}
    sums = np.zeros((len(questions), len(NAMES), 2))  # of gains, and of turns
    for turn in turns:
        for name in turn.names:
            sums[questions[turn.row], NAMES.index(name)] += (turn.gain, 1)
    draws = drawn_again(np.random.default_rng(0), np.ones(len(questions)))
    means, drawn = ratios(sums.sum(axis=0)), ratios(np.stack([np.tensordot(draw, sums, 1) for draw in draws]))
    counts = sums[:, :, 1].sum(axis=0).astype(int).tolist()
    found = {name: estimate(means[i], drawn[:, i], counts[i]) for i, name in enumerate(NAMES) if counts[i]}
    apart = estimate(means[0] - means[1], drawn[:, 0] - drawn[:, 1], len(turns)) if counts[0] and counts[1] else None
    return Gains(found, apart)


def gains_table(columns: Mapping[str, Gains], title: str) -> Table:
    """Return a table of evaluations side by side: a line for each name, with the number of turns."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("mean gain (95 % interval), turns")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for name in (one for one in NAMES if any(one in gains.means for gains in columns.values())):
        cells = [gains.means.get(name) for gains in columns.values()]
        table.add_row(name, *(f"{cell}  {cell.number:,}" if cell else "" for cell in cells))
        if name == WITHOUT:
            table.add_row("difference", *(str(gains.difference or "") for gains in columns.values()), end_section=True)
    return table
