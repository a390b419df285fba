"""records of rollouts (see records.py) -> a reward for each turn (B,K), by ready-made kinds and the user's own.

A turn reward function takes the record of a rollout and returns one number for each turn, the answer turn included, or
None if it has no reward for a turn. The ready-made functions find kinds of turns: 1 if a turn is of that kind, else 0.
The value of a kind is its weight in `A2TGPOConfig.turn_rewards`:

    turn_rewards: {bad_format: -0.1, duplicate_call: -0.05, my_rewards.py:progress: 1.0}

Shapes: B rollouts of this rank, F functions, K turns.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..lookup import load, nearest
from ..rollout.records import Record


TurnReward = Callable[[Record], Sequence[float | None]]

UNREADABLE = ("unparsed_call", "unknown_tool", "bad_arguments")


# ---- kinds of turns


def bad_format(record: Record) -> list[float]:
    """Find turns that are cut off or have a call that cannot be read or made, and first turns without a call.

    A rollout function's calls are not known, so only its turns that were cut off are found.

    Example: turns with a call that cannot be parsed, a good one, an answer -> [1, 0, 0]; an answer at once -> [1]
    """
    broken = [not {"over_budget", *UNREADABLE}.isdisjoint(_statuses(turn)) for turn in record["turns"]]
    if broken and record["turns"][0]["calls"] == []:
        broken[0] = True
    return _flags(broken)


def failed_call(record: Record) -> list[float]:
    """Find turns with a call that was made and raised an error, or did not return in time."""
    return _flags(not {"tool_error", "timeout"}.isdisjoint(_statuses(turn)) for turn in record["turns"])


def duplicate_call(record: Record) -> list[float]:
    """Find turns with exactly the same call as an earlier one in the rollout.

    Example: search(x), search(y), search(x), answer -> [0, 0, 1, 0]
    """
    seen: set[str] = set()
    flags = []
    for turn in record["turns"]:
        repeated = False
        for call in (call for call in _calls(turn) if call["made"]):
            key = json.dumps([call["name"], call["arguments"]], sort_keys=True, default=str)
            repeated |= key in seen
            seen.add(key)
        flags.append(repeated)
    return _flags(flags)


def read_only(record: Record) -> list[float]:
    """Find turns whose calls all succeeded and changed nothing (see `ToolSettings.changes_state`)."""
    return _flags(
        bool(_calls(turn)) and all(_is_good(call) and not call["changes_state"] for call in _calls(turn))
        for turn in record["turns"]
    )


def state_changing(record: Record) -> list[float]:
    """Find turns with a call that succeeded and changed something (`@tool(changes_state=True)`)."""
    return _flags(any(_is_good(call) and call["changes_state"] for call in _calls(turn)) for turn in record["turns"])


def environment(record: Record) -> list[float | None]:
    """Return the environment's own reward of each turn: its attribute `turn_reward` after the turn's calls."""
    return [turn["reward"] for turn in record["turns"]]


KINDS: dict[str, TurnReward] = {
    function.__name__: function
    for function in (bad_format, failed_call, duplicate_call, read_only, state_changing, environment)
}


# These read calls, which are not known for a rollout function.
READ_CALLS = (failed_call, duplicate_call, read_only, state_changing)


def _statuses(turn: Mapping[str, Any]) -> set[str]:
    return {turn["status"], *(call["status"] for call in _calls(turn))}


def _calls(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    return turn["calls"] or []  # None if a rollout function made them


def _is_good(call: Mapping[str, Any]) -> bool:
    return call["made"] and call["status"] in ("ok", "result_cut")


def _flags(of_turns: Any) -> list[float]:
    return [float(flag) for flag in of_turns]


# ---- all turn rewards of a run


class TurnRewards:
    """The turn rewards of a run, by name, with their weights."""

    def __init__(
        self,
        weights: Mapping[str, float],
        own: Sequence[TurnReward] | Mapping[str, TurnReward] = (),
        folders: Sequence[Path] = (),
    ):
        """`own`: functions that were given; those without a weight get 1."""
        given = dict(own) if isinstance(own, Mapping) else {_name_of(function): function for function in own}
        if not isinstance(own, Mapping) and len(given) < len(own):
            raise ValueError(
                "turn_reward_funcs: two functions have the same name, but metrics are named after them. Rename one."
            )
        self.weights = {**dict.fromkeys(given, 1.0), **weights}
        self._functions = {name: given.get(name) or find(name, folders or [Path.cwd()]) for name in self.weights}

    def __bool__(self) -> bool:
        return bool(self.weights)

    @property
    def names(self) -> list[str]:
        return list(self.weights)

    @property
    def of_calls(self) -> list[str]:
        """The names of turn rewards that read only calls."""
        return [name for name, function in self._functions.items() if function in READ_CALLS]

    def score(self, record: Record) -> dict[str, list[float | None]]:
        """Return one number a turn by function name. Raises a ValueError that says what is wrong with a function."""
        return {name: _checked(name, function(record), record) for name, function in self._functions.items()}

    def to_tensor(self, scores: Sequence[Mapping[str, Sequence[float | None]]], num_turns: int) -> Tensor:
        """Return unweighted scores of this rank's rollouts (B,F,K); NaN where a turn has none."""
        table = torch.full((len(scores), len(self.weights), num_turns), torch.nan)
        for i, of_rollout in enumerate(scores):
            for f, numbers in enumerate(of_rollout.values()):
                row = [math.nan if number is None else float(number) for number in numbers]
                table[i, f, : len(row)] = torch.tensor(row)[:num_turns]
        return table

    def weighted(self, scores_NFK: Tensor) -> Tensor:
        """Return the sum over functions of weight times score (N,K); NaN where no function has a number."""
        weights = torch.tensor(list(self.weights.values()), device=scores_NFK.device).view(1, -1, 1)
        total_NK = (weights * scores_NFK.nan_to_num(nan=0.0)).sum(dim=1)
        return torch.where(scores_NFK.isnan().all(dim=1), torch.nan, total_NK)


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)


def _name_of(function: TurnReward) -> str:
    name = getattr(function, "__name__", None)
    if name is None:
        raise ValueError(f"turn_reward_funcs: {function!r} has no name for its metrics. Pass it as {{name: it}}.")
    return name


def find(name: str, folders: Sequence[Path]) -> TurnReward:
    """Return a ready-made kind by name, or a function by import path."""
    if name in KINDS:
        return KINDS[name]
    if ":" not in name:
        raise ValueError(
            f"There is no turn reward {name!r}.{nearest(name, KINDS)} Known are {', '.join(KINDS)}; name a function "
            "as file.py:function or package.module:function."
        )
    return load(name, folders, "turn reward", KINDS)


def _checked(name: str, numbers: Any, record: Record) -> list[float | None]:
    turns = len(record["turns"])
    if name == "environment" and not all(number is None or _is_finite(number) for number in numbers):
        raise ValueError(
            f"An environment's turn_reward must be a finite number or None; for the turns it was {numbers}."
        )
    expected = f"The turn reward {name} must return one number per turn, {turns} for this rollout"
    try:
        row = [None if number is None else float(number) for number in numbers]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}; it returned {numbers!r:.200}.") from error
    if len(row) != turns:
        raise ValueError(f"{expected}; it returned {len(row)}. The answer turn counts as one.")
    if not all(number is None or math.isfinite(number) for number in row):
        raise ValueError(f"{expected}, each finite or None; it returned {row}.")
    return row
