"""a batch and its uninformative groups -> their prompts rolled out again -> the batch that is trained on.

A group is the rollouts of one prompt: `group_size` consecutive rows of the ranks' batches, concatenated.

Shapes: G groups.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ranks import Ranks
from .padding import to_batch, to_rows


# This rank's rows -> its batch, and which of all ranks' groups teach nothing.
RollOut = Callable[[list[dict[str, Any]]], tuple[dict[str, Any], Tensor]]


def spread_over_ranks(groups: Sequence[int], group_size: int, ranks: int) -> list[int]:
    """The groups, some of them repeated if needed so that whole groups make as many rows on each rank.

    Example: group 5 of four rollouts on two ranks -> [5], two rows each; on three ranks -> [5, 5, 5], a group each.
    """
    step = ranks // math.gcd(ranks, group_size)
    number = math.ceil(len(groups) / step) * step
    return [groups[i % len(groups)] for i in range(number)]


def first_informative(dealt: Sequence[int], uninformative: Sequence[int]) -> dict[int, int]:
    """For each group, the first of its places among those dealt that is informative.

    Example: groups [5, 7, 5] were dealt, place 0 is uninformative -> {7: 1, 5: 2}
    """
    found: dict[int, int] = {}
    for place, group in enumerate(dealt):
        if place not in uninformative:
            found.setdefault(group, place)
    return found


@dataclass(frozen=True)
class Resampled:
    """A batch to train on."""

    output: dict[str, Any]
    sources: list[tuple[int, int]]  # for each group of the batch: its round, and its place there
    metrics: dict[str, float]


class Resampler:
    """Rolls out again the prompts of groups that teach nothing, `limit` times at most.

    `run` is collective: the ranks agree on the groups, each rolls out as many rows as the others, and each ends with
    as many rows as it began with. Groups that taught something are left as they are.

    The log of rollouts and rewards covers all rounds and counts each rollout once (`RoundLog`), since all of it
    happened; records cover all rounds too. With `scale_rewards="batch"` an advantage is scaled by the rewards of its
    own round.
    """

    def __init__(self, ranks: Ranks, *, limit: int, group_size: int, pad_id: int, multiple: int | None):
        self._ranks, self._limit, self._group_size = ranks, limit, group_size
        self._pad_id, self._multiple = pad_id, multiple

    def run(self, roll_out: RollOut, rows: list[dict[str, Any]]) -> Resampled:
        """Roll out these rows, and again those of groups that teach nothing."""
        kept = copy.deepcopy(rows) if self._limit else []  # rewards and rollout functions write into rows
        batch, uninformative_G = roll_out(rows)
        uninformative, rolled_out = self._on_any_rank(uninformative_G), 0
        sources = [(0, group) for group in range(len(uninformative_G))]
        prompts = self._prompts_of(uninformative, kept) if self._limit and uninformative else {}
        for number in range(1, self._limit + 1):
            if not uninformative:
                break
            dealt = spread_over_ranks(uninformative, self._group_size, self._ranks.number)
            rolled_out += len(dealt)
            again, uninformative_again_G = roll_out(self._share([prompts[group] for group in dealt]))
            taken = first_informative(dealt, self._on_any_rank(uninformative_again_G))
            if taken:
                batch = self._merged(batch, again, taken)
            for group, place in taken.items():
                sources[group] = number, place
            uninformative = [group for group in uninformative if group not in taken]
        metrics = {}
        if self._group_size > 1:  # alone, a rollout has nothing to be compared with
            metrics["groups/teach_nothing"] = len(uninformative) / len(uninformative_G)
        if self._limit:
            metrics["groups/resampled"] = float(rolled_out)
        return Resampled(batch, sources, metrics)

    def _on_any_rank(self, uninformative_G: Tensor) -> list[int]:
        """Groups that are uninformative on any rank: devices may round to different sides of the tolerance."""
        flags = self._ranks.max_each(uninformative_G.int().tolist())
        return [group for group, flag in enumerate(flags) if flag]

    def _prompts_of(self, groups: Sequence[int], rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """The row of each of these groups, from the rank that has the group's first rollout."""
        first = self._ranks.index * len(rows)
        mine = [(group, group * self._group_size - first) for group in groups]
        sent = [(group, rows[i]) for group, i in mine if 0 <= i < len(rows)]
        return {group: row for of_rank in self._ranks.gather_lists(sent) for group, row in of_rank}

    def _share(self, prompts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """This rank's part of the rows of these groups, each row a separate copy."""
        number = len(prompts) * self._group_size // self._ranks.number
        first = self._ranks.index * number
        return [copy.deepcopy(prompts[i // self._group_size]) for i in range(first, first + number)]

    def _merged(self, batch: dict[str, Any], again: dict[str, Any], taken: dict[int, int]) -> dict[str, Any]:
        """The batch with the groups that were taken from a later one, whose rows are spread over the ranks."""
        size = self._group_size
        rows, rows_again = to_rows(batch, self._pad_id), to_rows(again, self._pad_id)
        first, first_again = self._ranks.index * len(rows), self._ranks.index * len(rows_again)
        sent = []
        for group, place in taken.items():
            for member in range(size):
                i = place * size + member - first_again
                if 0 <= i < len(rows_again):
                    # Copies: sending a part of a tensor would send all of it.
                    row = {key: values.cpu().clone() for key, values in rows_again[i].items()}
                    sent.append((group * size + member, row))
        device = batch["prompt_ids"].device
        for of_rank in self._ranks.gather_lists(sent):
            for target, row in of_rank:
                if 0 <= target - first < len(rows):
                    rows[target - first] = {key: values.to(device) for key, values in row.items()}
        merged: dict[str, Any] = to_batch(rows, self._pad_id, self._multiple)
        tokens = int((merged["completion_mask"] * merged.get("tool_mask", 1)).sum())
        total = sum(of_rank for (of_rank,) in self._ranks.gather_lists([tokens]))
        merged["num_items_in_batch"] = batch["num_items_in_batch"].new_tensor(max(total, 1))
        merged["num_turns"] = torch.maximum(batch["num_turns"], again["num_turns"])
        return merged
