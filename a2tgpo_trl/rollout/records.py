"""a scored batch of rollouts -> one dictionary a rollout, ready for JSON: what was asked, said, found and earned.

    {"prompt": [...], "completion": [...], "answer": "Nairobi", "hops": 2,      messages, columns of the row
     "rewards": {"exact_match": 1.0}, "tool_turns": 2, "values": [-9.1, -8.7, -0.2], "gains": [0.4, 8.5],
     "turns": [{"status": "ok", "calls": [{"name": "search", "arguments": {...}, "status": "ok", "result": "...",
                "seconds": 0.01, "attempts": 1, "made": true, "changes_state": false}],
                "tokens_out": 31, "tokens_in": 58, "seconds": 0.01, "cut": false, "reward": null}],
     "ended": "answer", "excluded": false, "turn_rewards": {"bad_format": [0.0, 0.0]}, "states": [0, 3]}

`prompt` is what the policy read: the row's prompt, and after it what `reset` of an environment added. If rollouts may
have turns, `turns`, `ended` and `excluded` are present: how each turn ended (see failures.py), why the rollout ended,
and whether it was excluded. `turn_rewards` is present if there are any: one number per turn, the answer turn included.
`states` is present if a method compares turns by what was read before them: turns of a prompt with the same number
have read equal or similar text. `values` and `gains` are present if a gain pass ran: the values after the prompt and
each tool turn, and the steps between them. A value that could not be computed is None. A column with the name of
another key, such as `turns`, is in the dictionary `columns`.

For a rollout function only tokens and mask are known: `prompt` is text, each turn has its `text` and what was `read`
after it, `calls` is None, and `ended` is None unless the last turn was cut.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, TypedDict, cast

from torch import Tensor

from .failures import Status
from .rollout import Turn


class CallRecord(TypedDict):
    """A call of a tool, and how it went."""

    name: str
    arguments: Any
    status: Status
    result: str
    seconds: float
    attempts: int
    made: bool
    changes_state: bool


class TurnRecord(TypedDict, total=False):
    """A turn. If a rollout function made it, `text` and `read` are present and `calls` is None."""

    status: Status
    calls: list[CallRecord] | None
    tokens_out: int
    tokens_in: int
    seconds: float
    cut: bool
    reward: float | None
    text: str
    read: str


class TokensRecord(TypedDict, total=False):
    """The tokens of a completion, one entry for each."""

    ids: list[int | None]
    sampled: list[int]
    texts: list[str | None]
    logps: list[float | None]
    ratios: list[float | None]
    clipped: list[int | None]


class Record(TypedDict, total=False):
    """A rollout. It also has the columns of its row; those with the name of one of these keys are in `columns`."""

    prompt: Any
    completion: Any
    answer: str | list[str]
    row: int  # number of the row, in an evaluation
    rewards: dict[str, float | None]
    tool_turns: int
    turns: list[TurnRecord]
    ended: str | None
    excluded: bool
    values: list[float | None]
    gains: list[float | None]
    turn_rewards: dict[str, list[float | None]]
    states: list[int]
    columns: dict[str, Any]
    # In the files of a run's rollouts (`recording/`).
    schema: int
    step: int
    rank: int
    round: int
    group: int
    batch: int
    outcome: float | None
    outcome_advantage: float | None
    advantages: list[float | None]
    scores: list[float | None]
    clip_scale: list[float | None]
    updates: int
    ratios: list[float | None]
    clip_fractions: list[float | None]
    prompt_ids: list[int | None]
    tokens: TokensRecord


KEYS = Record.__annotations__.keys() - {"prompt", "answer"}  # those of the record itself, not of its row


def make_records(
    rows: Sequence[dict[str, Any]],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    rewards_BF: Tensor,
    reward_names: Sequence[str],
    values_BK: Tensor | None,
    happened: Sequence[dict[str, Any]] | None = None,
) -> list[Record]:
    """One record per rollout, in order. `happened`: what the code that ran the loop says of each."""
    records = []
    for i, (row, prompt, completion) in enumerate(zip(rows, prompts, completions, strict=True)):
        rewards = zip(reward_names, map(json_number, rewards_BF[i].tolist()), strict=True)
        record = {
            **with_columns(row),
            "prompt": prompt,
            "completion": completion,
            "rewards": dict(rewards),
            "tool_turns": count_tool_turns(completion),
        }
        if happened is not None:
            record |= happened[i]
        if values_BK is not None:
            values = [json_number(value) for value in values_BK[i].tolist()[: record["tool_turns"] + 1]]
            record |= {"values": values, "gains": list(map(_gain, values, values[1:]))}
        records.append(cast(Record, record))
    return records


def with_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row as a record has them.

    Example: {"answer": "Bo", "hops": 2, "turns": 3} -> {"answer": "Bo", "hops": 2, "columns": {"turns": 3}}
    """
    named_as_keys = {name: value for name, value in row.items() if name in KEYS}
    others = {name: value for name, value in row.items() if name not in KEYS}
    return {**others, "columns": named_as_keys} if named_as_keys else others


def count_tool_turns(completion: Any) -> int:
    """Assistant messages that a tool answered; parallel calls of one message are one turn. Plain text has none."""
    if isinstance(completion, str):
        return 0
    roles = [message["role"] for message in completion]
    return sum(role == "tool" and before != "tool" for before, role in zip(["", *roles], roles, strict=False))


def read_off(
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    mask: Sequence[int],
    decode: Callable[[list[int]], str],
    end_ids: Sequence[int],
) -> dict[str, Any]:
    """What a rollout's tokens and the mask of sampled ones tell: the prompt as it was read, and the turns.

    Tokens before the first turn belong to the prompt.

    Example: mask 1 1 0 0 1 -> two turns, of 2 and 1 tokens out, 2 and 0 in; the second is cut unless it has an end
    """
    runs = [
        (sampled, [token for token, _ in pairs])
        for sampled, pairs in groupby(zip(completion_ids, mask, strict=True), key=lambda pair: bool(pair[1]))
    ]
    before = runs.pop(0)[1] if runs and not runs[0][0] else []
    ids = [run for _, run in runs]
    pairs = [(said, read[0] if read else []) for said, *read in (ids[k : k + 2] for k in range(0, len(ids), 2))]
    turns = [_turn_of_tokens(said, read, decode, not read and said[-1] not in end_ids) for said, read in pairs]
    return {
        "prompt": decode([*prompt_ids, *before] if turns else list(prompt_ids)),
        "tool_turns": sum(turn["tokens_in"] > 0 for turn in turns),
        "turns": turns,
        "ended": "over_budget" if turns and turns[-1]["cut"] else None,
        "excluded": False,
    }


def _turn_of_tokens(said: list[int], read: list[int], decode: Callable[[list[int]], str], cut: bool) -> dict[str, Any]:
    turn = Turn("over_budget" if cut else "ok", tokens_out=len(said), tokens_in=len(read), cut=cut)
    return {**asdict(turn), "calls": None, "text": decode(said), "read": decode(read)}


def _gain(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def write_jsonl(path: Path, records: Iterable[Record], mode: str = "w") -> None:
    """Write one record per line."""
    # A policy can write half a character ("\\ud83d") into the arguments of a call, which UTF-8 cannot encode.
    with path.open(mode, encoding="utf-8", errors="backslashreplace") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def read_jsonl(path: Path) -> list[Record]:
    """The records of a file; if the last line was cut off while it was written, it is left out."""
    records = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                records.append(json.loads(line))
            except ValueError:
                if line.endswith("\n"):
                    raise
    return records


def as_text(record: Record) -> str:
    """A rollout as text to read: question, calls with their results and gains, answer, rewards."""
    prompt, completion = record["prompt"], record["completion"]
    lines = [prompt if isinstance(prompt, str) else text_of(prompt[-1])]
    if record.get("turns") and record["turns"][0]["calls"] is None:
        lines += _lines_of_turns(record)
    elif isinstance(completion, str):
        lines.append(completion)
    else:
        lines += _lines_of_messages(record)
    rewards = ", ".join(f"{name} {value}" for name, value in record["rewards"].items())
    return "\n".join([*lines, f"right: {record['answer']}  ({rewards})" if "answer" in record else rewards])


def _lines_of_turns(record: Record) -> list[str]:
    """The lines of turns that a rollout function made."""
    lines, gains = [], iter(record.get("gains", []))
    for turn in record["turns"]:
        lines.append(turn["text"])
        lines += _answered(turn["read"], next(gains, None)) if turn["tokens_in"] else []
    return lines


def _lines_of_messages(record: Record) -> list[str]:
    lines, gains = [], iter(record.get("gains", []))
    for role, messages in groupby(record["completion"], key=lambda message: message["role"]):
        if role == "tool":  # the results of a turn's calls
            lines += _answered("\n".join(str(message["content"]) for message in messages), next(gains, None))
            continue
        for message in messages:
            lines += [message["content"]] if message.get("content") else []
            lines += [f"  {call_text(call['function'])}" for call in message.get("tool_calls") or ()]
    return lines


def _answered(text: str, gain: float | None) -> list[str]:
    lines = [f"    {line}" for line in text.splitlines()]
    return [*lines, f"    gain {gain:+.2f}"] if gain is not None else lines


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, whose content may be in parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def call_text(function: dict[str, Any]) -> str:
    arguments = function["arguments"]
    inside = ", ".join(map(repr, arguments.values())) if isinstance(arguments, dict) else str(arguments)
    return f"{function['name']}({inside})"
