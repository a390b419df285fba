"""records of rollouts -> those that a reader asks for, and what a terminal shows of them, by turns or side by side.

What a policy wrote and what a tool answered is shown as text: control characters, escape sequences and characters that
change the direction of a line are shown as codes and have no effect.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..rewards import RIGHT_OR_WRONG
from .record_files import read_records
from .records import call_text, text_of


OF_TRAINING = ("rollouts/*.jsonl", "rollouts/*.parquet")
FILES = (
    OF_TRAINING,
    ("rollouts.jsonl",),
    ("evaluation/*.jsonl",),
    ("evaluation/*/rollouts.jsonl",),
    ("*.jsonl", "step-*.parquet"),
)
BATCH = re.compile(r"-batch-(\d+)$")  # in the name of a file, if its step has several batches
MOST_LINES, MOST_CHARACTERS = 6, 400  # of one text, unless all of it is requested
BESIDE_LINES, BESIDE_CHARACTERS = 3, 120  # of a result beside others
BARS = "▁▂▃▄▅▆▇█"
COLUMN = 38  # characters of a rollout beside others

Record = Mapping[str, Any]


# ---- files


def read_places(places: Iterable[Path]) -> list[Record]:
    """The records in files and in folders of runs and evaluations; of a folder, the first kind of file found.

    With several runs or evaluations, `read_from` of each record says which one it belongs to.
    """
    found = [(_source(file), read_file(file)[0]) for place in places for file in files_in(place)]
    if len({source for source, _ in found}) == 1:
        return [record for _, records in found for record in records]
    return [{**record, "read_from": source} for source, records in found for record in records]


def _source(file: Path) -> str:
    """The run that a file of training rollouts belongs to, or the file itself: an evaluation has one file."""
    return str(file.parent.parent if any(map(file.match, OF_TRAINING)) else file)


def files_in(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    for patterns in FILES:
        if found := files_like(place, patterns):
            return found
    raise ValueError(
        f"There are no rollouts in {place}. Name a file of rollouts, the folder of an evaluation, or the folder of a "
        "run with record_every."
    )


def files_like(place: Path, patterns: Iterable[str]) -> list[Path]:
    """The files in a folder that match one of these patterns, a second batch of a step after the first."""
    found = {file for pattern in patterns for file in place.glob(pattern) if not file.name.startswith("_")}
    return sorted(found, key=lambda file: (file.parent, file.stem))


def read_file(file: Path) -> tuple[list[Record], bool]:
    """The records of a file (JSON lines, one JSON list, or Parquet), and whether the file is whole.

    If its last line was cut off, the file is not whole and the line is left out. Records of training have a `batch`,
    its number within the step, which the name of the file gives if the step has several.
    """
    is_whole = True
    try:
        if file.suffix == ".parquet":
            records: list[Any] = [*read_records(file)]
        else:
            records, is_whole = _parsed(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not a file of rollouts: {error}.") from error
    if not all(map(_is_record, records)):
        raise ValueError(f"{file} is not a file of rollouts: a line has no prompt, no completion or no rewards.")
    batch = BATCH.search(file.stem)
    named = {"batch": int(batch[1])} if batch else {}
    return [{"batch": 1, **record, **named} if _is_of_training(record) else record for record in records], is_whole


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not {"prompt", "completion", "rewards"} <= record.keys():
        return False
    return isinstance(record["rewards"], dict)


def _parsed(content: bytes) -> tuple[list[Any], bool]:
    """Example: '{"a": 1}\\n{"b"' -> [{"a": 1}], False"""
    if content[:100].lstrip()[:1] == b"[":
        return _json(content), True
    *lines, last = content.split(b"\n")
    records = [_json(line) for line in lines if line.strip()]
    try:
        return [*records, *([_json(last)] if last.strip() else [])], True
    except ValueError:
        return records, False


def _json(content: bytes) -> Any:
    return json.loads(content, parse_constant=lambda _: None)  # Python writes NaN: read it as None


# ---- choosing records


def is_solved(record: Record) -> bool:
    """Whether a rollout is solved, by the reward that is 1 or 0 if there is one, else by the first reward."""
    rewards = record["rewards"]
    name = next((name for name in rewards if name in RIGHT_OR_WRONG), next(iter(rewards), None))
    return name is not None and (rewards[name] or 0.0) >= 1.0


def _is_of_training(record: Record) -> bool:
    return {"step", "round", "group"} <= record.keys()


def prompt_of(record: Record) -> tuple[Any, ...]:
    """A key that the rollouts of a prompt share with no others; in training, keys sort in the order of steps."""
    key: tuple[Any, ...]
    if _is_of_training(record):
        key = (record["step"], record.get("batch", 1), record["group"], record["round"])
    else:
        key = (record.get("row"), str(record["prompt"]))
    return (*key, record.get("read_from"))


def by_prompt(records: Iterable[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """The rollouts of each prompt, in the order of each prompt's first rollout."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault(prompt_of(record), []).append(record)
    return found


def chosen(
    records: Sequence[Record], *, failed: bool, solved_and_failed: bool, grep: str | None, worst_gain: bool
) -> list[Record]:
    """The records that meet all conditions, in their order, or with the lowest gain first."""
    if solved_and_failed:
        both = {key for key, group in by_prompt(records).items() if len(set(map(is_solved, group))) == 2}
        records = [record for record in records if prompt_of(record) in both]
    if failed:
        records = [record for record in records if not is_solved(record)]
    if grep is not None:
        pattern = re.compile(grep, re.IGNORECASE)
        records = [record for record in records if pattern.search("\n".join(_texts(record)))]
    if worst_gain:
        gains = [(min(known), i) for i, record in enumerate(records) if (known := _known(record.get("gains", ())))]
        records = [records[i] for _, i in sorted(gains)]
    return list(records)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _texts(record: Record) -> Iterator[str]:
    """The texts of a rollout: the question, what was written and what was read."""
    yield question(record)
    if isinstance(record["completion"], str):
        yield record["completion"]
        return
    for message in record["completion"]:
        yield text_of(message) if message.get("content") else ""
        yield from (call_text(call["function"]) for call in message.get("tool_calls") or ())


def question(record: Record) -> str:
    """The last text that the policy was asked."""
    prompt = record["prompt"]
    return prompt if isinstance(prompt, str) else text_of(prompt[-1])


# ---- one rollout


def plain(text: str, full: bool = True) -> str:
    """The text with control characters escaped for a terminal; shortened unless `full`.

    Example: a red "no" -> "\\x1b[31mno"
    """
    shown = "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))
    return shown if full else cut(shown, MOST_LINES, MOST_CHARACTERS)


def _escaped(line: str) -> str:
    return "".join(
        char if char == "\t" or unicodedata.category(char)[0] != "C" else char.encode("unicode_escape").decode()
        for char in line
    )


def cut(text: str, lines: int, characters: int) -> str:
    """The beginning of a text, and how much of it is left out.

    Example: "abcdef", 2 characters -> "ab ... (4 characters more)"
    """
    part = "\n".join(text.split("\n", lines)[:lines])[:characters]
    left = len(text) - len(part)
    return part if left == 0 else f"{part} ... ({left:,} characters more)"


def as_turns(record: Record, full: bool = False) -> Text:
    """A rollout turn by turn: calls, results, and what each turn gained and was credited with."""
    text = Text(_heading(record), style="bold")
    text.append("\n" + plain(question(record), full) + "\n", style="not bold")
    for place, (written, read) in enumerate(_turns(record)):
        style = _style(record, place)
        text.append(plain(written, full) + "\n", style=style)
        for line in plain(read, full).split("\n") if read else ():
            text.append(f"    {line}\n", style="dim not bold")
        numbers = _numbers(record, place)
        if numbers:
            text.append(f"    {numbers}\n", style=style)
    return text.append(f"{_right(record, full)}{_outcome(record)}\n", style="bold")


def _heading(record: Record) -> str:
    """Example: step 11, group 3, rank 0   values ▁▃█ -9.10 -> -0.20"""
    return "   ".join(part for part in (_place(record), _curve(record)) if part)


def _place(record: Record) -> str:
    """Where a rollout is from. Example: step 11, batch 2, group 3, rank 0"""
    found = [str(record["read_from"])] if "read_from" in record else []
    for name in ("step", "batch", "group", "round", "rank", "row"):
        if name in record and (record[name] != 1 or name not in ("batch", "round")):  # most steps have one of each
            found.append(f"{name} {record[name]}")
    return plain(", ".join(found))


def _curve(record: Record) -> str:
    values = _known(record.get("values", ()))
    return f"values {spark(values)} {values[0]:.2f} -> {values[-1]:.2f}" if values else ""


def _right(record: Record, full: bool) -> str:
    return f"right: {plain(accepted(record['answer']), full)}   " if "answer" in record else ""


def accepted(answer: Any) -> str:
    """Example: ["Bo", "Mr Bo"] -> "Bo, or Mr Bo" """
    return ", or ".join(map(str, answer)) if isinstance(answer, (list, tuple)) else str(answer)


def _outcome(record: Record) -> str:
    """Example: exact_match 0, f1 0.5, ended: over_budget, left out"""
    numbers = {name: "-" if value is None else f"{value:g}" for name, value in record["rewards"].items()}
    found = [f"{name} {number}" for name, number in numbers.items()]
    if record.get("ended") not in (None, "answer"):
        found.append(f"ended: {record['ended']}")
    return plain(", ".join([*found, *(["left out"] if record.get("excluded") else [])]))


def spark(values: Sequence[float]) -> str:
    """Values as bars, from the lowest to the highest.

    Example: -9.0, -4.5, 0.0 -> "▁▄█"
    """
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[int((value - low) / span * (len(BARS) - 1))] for value in values)


class Turn(NamedTuple):
    """What was said in a turn, which calls it made, and what was read after it."""

    said: str
    calls: list[str]
    read: list[str]


def turns_of(record: Record) -> Iterator[Turn]:
    """The turns of a rollout, from its messages, or from the texts of its turns if a rollout function made it."""
    turns = record.get("turns")
    if turns and turns[0]["calls"] is None:
        yield from (Turn(turn["text"], [], [turn["read"]] if turn["read"] else []) for turn in turns)
        return
    if isinstance(record["completion"], str):
        yield Turn(record["completion"], [], [])
        return
    said: list[str] = []
    calls: list[str] = []
    for role, messages in groupby(record["completion"], key=lambda message: message["role"]):
        if role == "tool":
            yield Turn("\n".join(said), calls, [text_of(message) for message in messages])
            said, calls = [], []
            continue
        for message in messages:
            said += [text_of(message)] if message.get("content") else []
            calls += [call_text(call["function"]) for call in message.get("tool_calls") or ()]
    if said or calls:
        yield Turn("\n".join(said), calls, [])


def _turns(record: Record) -> Iterator[tuple[str, str]]:
    """What was written in each turn, and what was read after it."""
    for said, calls, read in turns_of(record):
        yield "\n".join([*([said] if said else []), *calls]), "\n".join(read)


LABELS = {"gains": "gain", "scores": "z", "advantages": "advantage", "clip_scale": "clip"}


def _numbers(record: Record, place: int) -> str:
    """Example: gain +3.45   z +1.20   advantage +0.94   clip x1.16   failed_call -1.00   timeout"""
    found = []
    for name, label in LABELS.items():
        value = _at(record, name, place)
        if value is not None:
            found.append(f"{label} x{value:.2f}" if name == "clip_scale" else f"{label} {value:+.2f}")
    rewards = record.get("turn_rewards") or {}
    found += [f"{name} {value:+.2f}" for name in rewards if (value := _at(rewards, name, place))]
    turns = record.get("turns") or ()
    if place < len(turns) and turns[place]["status"] != "ok":
        found.append(turns[place]["status"])
    return plain("   ".join(found))


def _at(record: Record, name: str, place: int) -> float | None:
    values = record.get(name) or ()
    return values[place] if place < len(values) else None


def _style(record: Record, place: int) -> str:
    """Green for turns that become more likely, red for less likely; by the gain if nothing was credited."""
    credited = _at(record, "advantages", place)
    value = _at(record, "gains", place) if credited is None else credited
    colour = "" if not value else "green " if value > 0 else "red "
    return f"{colour}not bold"


# ---- the rollouts of a prompt


def side_by_side(records: Sequence[Record], width: int) -> RenderableType:
    """A column for each rollout of a prompt, a line for each turn: calls, the beginnings of results, numbers."""
    column = min(COLUMN, max(width - 1, 8))
    per_table = max((width - 1) // column, 1)
    of_prompt = {name: value for name, value in records[0].items() if name != "rank"}  # ranks may differ
    asked = Text(f"{_place(of_prompt)}\n" if _place(of_prompt) else "", style="bold")
    tables: list[RenderableType] = [asked.append(plain(question(records[0]), full=False), style="not bold")]
    for start in range(0, len(records), per_table):
        tables.append(_table(records[start : start + per_table], start, column - 3))
    return Group(*tables, Text(f"{_right(records[0], full=False)}\n", style="bold"))


def _table(records: Sequence[Record], first: int, width: int) -> Table:
    table = Table(show_lines=True)
    for number, record in enumerate(records, start=first + 1):
        head = [f"{number}: {'solved' if is_solved(record) else 'failed'}", _outcome(record), _curve(record)]
        table.add_column(Text("\n".join(filter(None, head))), width=width)
    turns = [list(_turns(record)) for record in records]
    for place in range(max(map(len, turns))):
        table.add_row(*(_cell(record, of, place) for record, of in zip(records, turns, strict=True)))
    return table


def _cell(record: Record, turns: Sequence[tuple[str, str]], place: int) -> Text:
    if place >= len(turns):
        return Text()
    written, read = turns[place]
    text = Text()
    text.append(plain(written, full=False), style=_style(record, place))
    if read:
        text.append("\n" + cut(plain(read), BESIDE_LINES, BESIDE_CHARACTERS), style="dim")
    numbers = _numbers(record, place)
    return text.append(f"\n{numbers}", style=_style(record, place)) if numbers else text
