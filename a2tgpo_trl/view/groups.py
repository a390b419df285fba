"""records -> their groups: a row of the table for each, and its rollouts as they are shown."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from ..rollout.reading import Record, Turn, accepted, by_prompt, cut, is_solved, plain, question, turns_of
from ..rollout.records import text_of
from ..study.mechanism import credit


MOST_LINES, MOST_CHARACTERS = 2_000, 10_000  # per text
IN_TABLE = 160  # characters per question
MOST_TOKENS = 4_000  # per turn
NUMBERS = {
    **{"gain": "gains", "score": "scores", "advantage": "advantages", "clip_scale": "clip_scale"},
    "ratio": "ratios",
}
OF_TOKENS = {"ratio": "ratios", "logp": "logps", "clipped": "clipped"}


def groups_of(records: Iterable[Record]) -> list[list[Record]]:
    """Return the rollouts of each prompt of a batch, in the order of the steps."""
    groups = by_prompt(records)
    return [groups[key] for key in sorted(groups)]


def line(group: Sequence[Record]) -> dict[str, Any]:
    """Return the table row of a group.

    Example: gains 1, 4 and -2 in all -> "spread": 6
    """
    first = group[0]
    gains = [gain for record in group for gain in record.get("gains", ()) if gain is not None]
    outcomes = [record["outcome"] for record in group if record["outcome"] is not None]
    solved = sum(map(is_solved, group))
    return {
        "step": first["step"],
        "group": first["group"],
        "round": first["round"],
        "batch": first["batch"],
        "question": cut(plain(question(first)), 1, IN_TABLE),
        "asked": _asked(first["prompt"]),
        "rollouts": len(group),
        "reward": short(fmean(outcomes)) if outcomes else None,
        "solved": solved,
        "failed": len(group) - solved,
        "spread": short(max(gains) - min(gains)) if gains else None,
        "failures": sum(turn["status"] != "ok" for record in group for turn in record.get("turns", ())),
    }


def _asked(prompt: Any) -> str:
    """Return a digest of a prompt, which is the same in every run."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]


def key_of(group: Sequence[Record]) -> str:
    """Return the name of a group in its run: step, batch, number and round.

    Example: step 11, batch 2, group 3 -> "11.2.3.1"
    """
    first = group[0]
    return ".".join(str(first[name]) for name in ("step", "batch", "group", "round"))


def shown(group: Sequence[Record], has_credit: bool) -> dict[str, Any]:
    """Return a group as the page shows it: prompt, right answer and rollouts.

    `has_credit`: whether its step's method adds credit (`curves.adds_credit`); one rollout alone does not tell.
    """
    first = group[0]
    messages = [first["prompt"]] if isinstance(first["prompt"], str) else list(map(text_of, first["prompt"]))
    return {
        "prompt": [_text(message) for message in messages],
        "answer": None if first.get("answer") is None else _text(accepted(first["answer"])),
        "rollouts": [_rollout(record, has_credit) for record in group],
    }


def _rollout(record: Record, has_credit: bool) -> dict[str, Any]:
    credits = credit(record) if has_credit and None not in record["advantages"] else ()
    pieces = _pieces(record)
    turns = [
        {
            **_turn(record, place, turn),
            "credit": _nth(credits, place),
            "pieces": pieces[place] if place < len(pieces) else None,
        }
        for place, turn in enumerate(turns_of(record))
    ]
    return {
        "solved": is_solved(record),
        "rank": record["rank"],
        "ended": record.get("ended"),
        "excluded": record.get("excluded", False),
        "outcome": short(record["outcome"]),
        "rewards": {plain(name): short(value) for name, value in record["rewards"].items()},
        "values": [short(value) for value in record.get("values", ())],
        "turns": turns,
    }


def _pieces(record: Record) -> list[dict[str, Any]]:
    """Return the texts and numbers of each turn's tokens; an empty list if tokens were not recorded.

    Tokens have their turn's advantage: no credit method distinguishes the tokens of a turn.
    """
    tokens = record.get("tokens")
    if not isinstance(tokens, Mapping) or not {"sampled", "texts"} <= tokens.keys():
        return []
    runs = groupby(range(len(tokens["sampled"])), key=lambda place: tokens["sampled"][place])
    return [_of_run(tokens, list(places)) for sampled, places in runs if sampled]


def _of_run(tokens: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """Return the first MOST_TOKENS of the tokens at these places, and how many more there are."""
    shown = places[:MOST_TOKENS]
    numbers = {name: [tokens[key][i] for i in shown] for name, key in OF_TOKENS.items() if key in tokens}
    texts = [plain(tokens["texts"][i] or "")[:MOST_CHARACTERS] for i in shown]
    return {"texts": texts, "left": len(places) - len(shown), **numbers}


def _turn(record: Record, place: int, turn: Turn) -> dict[str, Any]:
    happened = record["turns"][place] if place < len(record.get("turns", ())) else {}
    # A call that cannot be read, or is one too many, is not recorded.
    made = happened.get("calls") or ()
    known: Sequence[Any] = made if len(made) == len(turn.calls) else [None] * len(turn.calls)
    numbers = {name: _nth(record.get(key, ()), place) for name, key in NUMBERS.items()}
    rewards = {plain(name): _nth(values, place) for name, values in (record.get("turn_rewards") or {}).items()}
    return {
        "said": _text(turn.said),
        "calls": [{"text": _text(text), **_ended(call)} for text, call in zip(turn.calls, known, strict=True)],
        "read": [_text(text) for text in turn.read],
        "status": happened.get("status", "ok"),
        "tokens": happened.get("tokens_out"),
        **numbers,
        "rewards": rewards,
    }


def _ended(call: dict[str, Any] | None) -> dict[str, Any]:
    return {} if call is None else {"status": call["status"], "seconds": short(call["seconds"])}


def _nth(values: Sequence[float | None], place: int) -> float | None:
    return short(values[place]) if place < len(values) else None


def _text(text: str) -> str:
    return cut(plain(text), MOST_LINES, MOST_CHARACTERS)


def short(value: float | None) -> float | None:
    """Return a number rounded to six significant digits.

    Example: 0.4843829274177551 -> 0.484383
    """
    return None if value is None else float(f"{value:.6g}")
