"""assumptions, or rollouts on record -> how many turns rollouts have and how long these are."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rollout.records import Record, read_jsonl


@dataclass(frozen=True)
class Turn:
    """One turn of the rollouts that reach it. Tokens are averages but `longest`, which is that of a batch."""

    share: float  # of all rollouts
    tokens: float
    longest: float
    results: float = 0.0  # tokens that the tools add
    tool_share: float = 0.0  # of these rollouts that call a tool
    tool_seconds: float = 0.0  # from the first call to the last result, where one does


@dataclass(frozen=True)
class Lengths:
    """Rollouts of a batch. `longest_completion` is how far they are padded at most: a micro-batch is as wide as the
    longest of its own rollouts, and under TRL's GRPO as the longest of the batch.
    """

    prompt: float
    longest_prompt: float
    turns: tuple[Turn, ...]
    longest_completion: float
    probe: float = 16.0

    @property
    def sampled(self) -> float:
        """Tokens that the policy writes, per rollout."""
        return sum(turn.share * turn.tokens for turn in self.turns)

    @property
    def results(self) -> float:
        """Tokens that tools add, per rollout."""
        return sum(turn.share * turn.results for turn in self.turns)

    @property
    def row(self) -> float:
        """Tokens of a rollout with its prompt."""
        return self.prompt + self.sampled + self.results

    @property
    def longest_row(self) -> float:
        return self.longest_prompt + self.longest_completion

    @property
    def contexts(self) -> float:
        """Contexts that are valued, per rollout: the prompt, and what follows each tool turn."""
        return 1 + sum(turn.share * turn.tool_share for turn in self.turns)

    def context(self, number: int) -> float:
        """Tokens before this turn, of the rollouts that reach it."""
        return self.prompt + sum(turn.tokens + turn.results for turn in self.turns[:number])


def assumed(
    *,
    prompt: float,
    longest_prompt: float,
    turns: float,
    tokens: float,
    results: float,
    tool_seconds: float,
    spread: float,
    probe: float,
    most: int,
) -> Lengths:
    """Turns of equal length, the last of them the answer; a fraction is the share of rollouts that take one more.

    `most`: tokens that a completion may have. What is beyond is cut off, as training does.

    Example: 2.5 turns of 100 tokens, results of 200 -> shares 1, 1, 0.5; completions of 2.5 * 100 + 1.5 * 200 = 550
    """
    for name, value in (("turns", turns), ("spread", spread)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1; got {value:g}.")
    number = math.ceil(turns)
    made = []
    for k in range(number):
        share = min(1.0, turns - k)
        next_share = min(1.0, max(0.0, turns - k - 1)) / share
        made.append(Turn(share, tokens, tokens * spread, results * next_share, next_share, tool_seconds))
    mean = turns * tokens + (turns - 1) * results
    if mean > most:
        raise ValueError(
            f"{turns:g} turns of {tokens:g} tokens and {turns - 1:g} tool results of {results:g} are {mean:g} tokens, "
            f"more than max_completion_length {most}. Raise it, or assume less: --turns, --tokens_per_turn, "
            "--tool_tokens."
        )
    return Lengths(prompt, longest_prompt, tuple(made), min(mean * spread, most), probe)


def recorded(
    records: Sequence[Mapping[str, Any]], batch: int, *, prompt: float, longest_prompt: float, probe: float
) -> Lengths:
    """The turns of rollouts on record (records.py), in batches of so many."""
    rollouts = [record["turns"] for record in records]
    batches = [rollouts[start : start + batch] for start in range(0, len(rollouts), batch)]
    made = []
    for k in range(max(map(len, rollouts))):
        reached = [turns[k] for turns in rollouts if len(turns) > k]
        called = [turn for turn in reached if turn["tokens_in"] > 0]
        longest = [max((turns[k]["tokens_out"] for turns in one if len(turns) > k), default=0) for one in batches]
        made.append(
            Turn(
                share=len(reached) / len(rollouts),
                tokens=_mean([turn["tokens_out"] for turn in reached]),
                longest=_mean(longest),  # no turn is no time: batches that do not come so far count as zero
                results=_mean([turn["tokens_in"] for turn in reached]),
                tool_share=len(called) / len(reached),
                tool_seconds=_mean([turn["seconds"] for turn in called]),
            )
        )
    longest_completions = [
        max(sum(t["tokens_out"] + t["tokens_in"] for t in turns) for turns in one) for one in batches
    ]
    return Lengths(prompt, longest_prompt, tuple(made), _mean(longest_completions), probe)


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def read_records(path: Path) -> list[Record]:
    """Records of an evaluation or a run, with turns."""
    try:
        records = [record for record in read_jsonl(path) if record.get("turns")]
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"--rollouts {path}: not the records of an evaluation (one JSON object a line).") from error
    if not records:
        raise ValueError(f"--rollouts {path}: no record in it has turns. Records of a policy with tools do.")
    return records
