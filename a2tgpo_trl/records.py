"""a scored batch of rollouts -> one dictionary a rollout, ready for JSON: what was asked, said, found and earned.

    {"prompt": [...], "completion": [...], "answer": "Nairobi", "hops": 2,      columns of the row, messages
     "rewards": {"exact_match": 1.0}, "tool_turns": 2, "values": [-9.1, -8.7, -0.2], "gains": [0.4, 8.5],
     "turns": [{"status": "ok", "calls": [{"name": "search", "arguments": {...}, "status": "ok", "result": "...",
                "seconds": 0.01, "attempts": 1, "made": true, "changes_state": false}],
                "tokens_out": 31, "tokens_in": 58, "seconds": 0.01, "cut": false, "reward": null}],
     "ended": "answer", "excluded": false, "turn_rewards": {"bad_format": [0.0, 0.0]}}

`turns`, `ended` and `excluded` are there where the policy had tools: how each turn ended (see failures.py), and why
the rollout did; `turn_rewards` where there are any: a number a turn, the answer turn included. `values` and `gains`
are there where a gain pass ran: the value of the prompt and after each tool turn, and the steps between them. A value
that could not be computed is None.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def make_records(
    rows: Sequence[dict[str, Any]],
    completions: Sequence[Any],
    rewards_BF: Tensor,
    reward_names: Sequence[str],
    values_BK: Tensor | None,
    happened: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """One record per rollout, in their order. `happened`: what the tool loop has to say of each."""
    records = []
    for i, (row, completion) in enumerate(zip(rows, completions, strict=True)):
        rewards = zip(reward_names, map(_number, rewards_BF[i].tolist()), strict=True)
        record = {
            **row,
            "completion": completion,
            "rewards": dict(rewards),
            "tool_turns": count_tool_turns(completion),
        }
        if happened is not None:
            record |= happened[i]
        if values_BK is not None:
            values = [_number(value) for value in values_BK[i].tolist()[: record["tool_turns"] + 1]]
            record |= {"values": values, "gains": list(map(_gain, values, values[1:]))}
        records.append(record)
    return records


def count_tool_turns(completion: Any) -> int:
    """Assistant messages that a tool answered; parallel calls of one message are one turn. Plain text has none."""
    if isinstance(completion, str):
        return 0
    roles = [message["role"] for message in completion]
    return sum(role == "tool" and before != "tool" for before, role in zip(["", *roles], roles, strict=False))


def _gain(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def write_jsonl(path: Path, records: Iterable[dict[str, Any]], mode: str = "w") -> None:
    """One record a line."""
    # A policy can write half a character ("\\ud83d") into the arguments of a call, which no file holds as it is.
    with path.open(mode, encoding="utf-8", errors="backslashreplace") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that was cut off while it was written is left out."""
    records = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break
            records.append(json.loads(line))
    return records


def as_text(record: dict[str, Any]) -> str:
    """A rollout for a reader: question, calls with their results and gains, answer, rewards."""
    prompt = record["prompt"]
    lines = [prompt if isinstance(prompt, str) else prompt[-1]["content"]]
    if isinstance(record["completion"], str):
        lines.append(record["completion"])
        return "\n".join(lines)
    gains = iter(record.get("gains", []))
    before = ""
    for message in record["completion"]:
        if message["role"] == "tool":
            gain = next(gains, None) if before != "tool" else None
            lines += [f"    {line}" for line in str(message["content"]).splitlines()]
            lines += [f"    gain {gain:+.2f}"] if gain is not None else []
        else:
            lines += [message["content"]] if message.get("content") else []
            lines += [f"  {_call_text(call['function'])}" for call in message.get("tool_calls") or ()]
        before = message["role"]
    rewards = ", ".join(f"{name} {value}" for name, value in record["rewards"].items())
    return "\n".join([*lines, f"right: {record['answer']}  ({rewards})" if "answer" in record else rewards])


def _call_text(function: dict[str, Any]) -> str:
    arguments = function["arguments"]
    inside = ", ".join(map(repr, arguments.values())) if isinstance(arguments, dict) else str(arguments)
    return f"{function['name']}({inside})"
