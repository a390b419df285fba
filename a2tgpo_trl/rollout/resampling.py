"""a credited batch -> groups that teach nothing -> their prompts rolled out again -> the batch that is trained on.

A group is the rollouts of one prompt: `group_size` consecutive rows of the ranks' batches one after the other. If all
of them earned the same and gained the same, their advantages are 0, and all that was spent on them moves no weight.

Shapes: N rollouts of all ranks, B of this rank, G groups, K turns, T completion tokens.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ..credit import VARIANCE_FLOOR, Evidence
from ..metrics import over_rounds
from ..ranks import Ranks


# What two outcome advantages may differ by and still be equal: the scale below which z-scores fade out.
TOLERANCE = math.sqrt(VARIANCE_FLOOR)
# Advantage of a turn, in units of its weight, that is as good as none where outcomes are equal.
FADED = 1e-3

# What a batch is made of, and what fills it up. Another name would be a new one of TRL's, of unknown meaning.
PROMPT_KEYS = ("prompt_ids", "prompt_mask")
COMPLETION_FILL: dict[str, float] = {
    "completion_mask": 0,
    "tool_mask": 1,  # as TRL fills it
    "turn_index": -1,
    "advantages": 0.0,
    "clip_scale": 1.0,
    "old_per_token_logps": 0.0,
    "sampling_per_token_logps": 0.0,
    "importance_sampling_ratio": 1.0,
    # TRL takes exp(reference - policy) before it masks: with 0 that may be inf, and inf times a mask of 0 is NaN.
    "ref_per_token_logps": -100.0,
}
BATCH_KEYS = ("num_items_in_batch", "num_turns")


# This rank's rows -> its batch, and which of all ranks' groups teach nothing.
RollOut = Callable[[list[dict[str, Any]]], tuple[dict[str, Any], Tensor]]


# ---- what a group teaches


def _unlike(values: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Whether the entries of a flat tensor with the same cell number differ, for each cell; NaN is no entry."""
    absent = values.isnan()
    empty = values.new_full((num_cells,), torch.inf)
    lowest = empty.scatter_reduce(0, cell, values.masked_fill(absent, torch.inf), reduce="amin")
    highest = (-empty).scatter_reduce(0, cell, values.masked_fill(absent, -torch.inf), reduce="amax")
    return highest - lowest > TOLERANCE  # -inf for a cell without entries


def _any_of(flags: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    return torch.zeros(num_cells, device=flags.device).index_add(0, cell, flags.float()) > 0


def teaches_nothing(evidence: Evidence, credit: Callable[[Evidence], Tensor], strength: float = 1.0) -> Tensor:
    """Which groups leave every turn in the loss with an advantage of 0, in the order of their ids.

    Of equal rewards TRL makes outcome advantages that may be off 0 by the rounding of their mean: they count as 0.

    Args:
        evidence: of the batch.
        credit: what makes advantages of it.
        strength: weight of what tells turns apart, beside which advantages fade.

    Example: outcomes [0, 0 | -1, 1 | 0, nan], gains [[1, 5], [1, nan] | [nan, nan] twice | [3, nan], [nan, nan]] ->
    [True, False, True] by A2TGPO: 5 and 3 are alone in their cells; with "pooled" [False, False, True].
    """
    groups, group_N = evidence.group_ids_N.unique(return_inverse=True)
    outcomes_N = evidence.outcome_advantages_N.masked_fill(evidence.outcomes_N.isnan(), torch.nan)
    unlike_G = _unlike(outcomes_N, group_N, len(groups))
    counted_N = torch.where(unlike_G[group_N], evidence.outcome_advantages_N, 0.0)
    advantages_NK = credit(replace(evidence, outcome_advantages_N=counted_N))
    # Gains have a floor. Of turn rewards and returns, whose floor is as low as their rounding, that makes advantages.
    least = torch.where(unlike_G[group_N], TOLERANCE, FADED * strength).unsqueeze(1)
    taught_N = ((advantages_NK.abs() > least) & evidence.is_turn_NK).any(dim=1)
    return ~_any_of(taught_N, group_N, len(groups))


# ---- which groups are rolled out again, and where


def deal(groups: Sequence[int], group_size: int, ranks: int) -> list[int]:
    """The groups, some of them twice where that is needed for whole groups to be as many rows on each rank.

    Example: group 5 of four rollouts on two ranks -> [5], two rows each; on three ranks -> [5, 5, 5], a group each.
    """
    step = ranks // math.gcd(ranks, group_size)
    number = math.ceil(len(groups) / step) * step
    return [groups[i % len(groups)] for i in range(number)]


def first_lessons(dealt: Sequence[int], dull: Sequence[int]) -> dict[int, int]:
    """Group -> the first of its places among those dealt that is not dull.

    Example: groups [5, 7, 5] were dealt, place 0 is dull -> {7: 1, 5: 2}
    """
    found: dict[int, int] = {}
    for place, group in enumerate(dealt):
        if place not in dull:
            found.setdefault(group, place)
    return found


# ---- a batch <-> its rows


def to_rows(batch: dict[str, Tensor], pad_id: int) -> list[dict[str, Tensor]]:
    """Each rollout of a batch without its padding. What the batch has as a whole (`BATCH_KEYS`) is left out."""
    unknown = batch.keys() - {"completion_ids", *PROMPT_KEYS, *COMPLETION_FILL, *BATCH_KEYS}
    if unknown:
        raise ValueError(f"A batch with {', '.join(sorted(unknown))} cannot be put together from rows.")
    completion_BT, prompt_mask = batch["completion_ids"], batch["prompt_mask"]
    # The mask alone is not enough: it is 0 all over a truncated rollout that is masked out.
    real_BT = batch["completion_mask"].bool() | (completion_BT != pad_id)
    place_T = torch.arange(1, completion_BT.size(1) + 1, device=completion_BT.device)
    lengths = (real_BT * place_T).amax(dim=1).tolist()
    starts = (prompt_mask.size(1) - prompt_mask.sum(dim=1)).tolist()
    rows: list[dict[str, Tensor]] = [{} for _ in lengths]
    for key, values in batch.items():
        if key in BATCH_KEYS:
            continue
        if key == "importance_sampling_ratio":  # one a token, or one a rollout
            values = values.expand_as(completion_BT)
        for row, of_row, start, length in zip(rows, values, starts, lengths, strict=True):
            row[key] = of_row[int(start) :] if key in PROMPT_KEYS else of_row[: int(length)]
    return rows


def to_batch(rows: Sequence[dict[str, Tensor]], pad_id: int, multiple: int | None = None) -> dict[str, Tensor]:
    """Rows of unlike lengths as one batch: prompts filled up on the left, completions on the right.

    Example: completions [7] and [8, 9] -> [[7, pad_id], [8, 9]]; with multiple 4 -> [[7, p, p, p], [8, 9, p, p]]
    """
    assert all(row.keys() == rows[0].keys() for row in rows)
    batch = {}
    for key in rows[0]:
        side = "left" if key in PROMPT_KEYS else "right"
        fill = pad_id if key in ("prompt_ids", "completion_ids") else COMPLETION_FILL.get(key, 0)
        values = pad_sequence([row[key] for row in rows], True, fill, side)
        missing = 0 if multiple is None else -values.size(1) % multiple
        batch[key] = pad(values, (missing, 0) if side == "left" else (0, missing), value=fill)
    return batch


# ---- what is logged of the rounds


class RoundLog:
    """What the rounds of a batch add to a log, round by round -> one entry of each name for the batch.

    A log averages over its entries, and a round of a few groups must not weigh as much as that of all.
    """

    def __init__(self, log: dict[str, list[float]]):
        self._log = log
        self._begun = {name: len(entries) for name, entries in log.items()}
        self._rounds: list[tuple[int, dict[str, list[float]]]] = []

    def end_round(self, rollouts: int) -> None:
        """Take out what this round has added, a round of so many rollouts."""
        added = {name: entries[self._begun.get(name, 0) :] for name, entries in self._log.items()}
        for name in added:
            del self._log[name][self._begun.get(name, 0) :]
        self._rounds.append((rollouts, {name: entries for name, entries in added.items() if entries}))

    def end_batch(self) -> None:
        """Put in what the rounds say together; of a single round, what it said."""
        if len(self._rounds) == 1:
            ((_, together),) = self._rounds
        else:
            means = [(n, {name: sum(of) / len(of) for name, of in added.items()}) for n, added in self._rounds]
            together = {name: [value] for name, value in over_rounds(means).items()}
        for name, entries in together.items():
            self._log[name].extend(entries)


# ---- the ranks together


class Resampler:
    """Rolls the prompts of groups that teach nothing out again, `limit` times at most.

    `run` is a collective: the ranks agree on the groups, each rolls out as many rows as the others, and each ends with
    as many rows as it began with. Groups that taught something are left as they are.

    What is logged of rollouts and rewards is of all rounds, each rollout counted once (`RoundLog`), since all of it
    happened; so are the records of rollouts. `sources` tells what the batch that is trained on is made of. With
    `scale_rewards="batch"` an advantage is scaled by the rewards of its own round.
    """

    sources: list[tuple[int, int]]  # of each group of the batch: the round that it is from, and its place there

    def __init__(self, ranks: Ranks, *, limit: int, group_size: int, pad_id: int, multiple: int | None):
        self._ranks, self._limit, self._group_size = ranks, limit, group_size
        self._pad_id, self._multiple = pad_id, multiple

    def run(self, roll_out: RollOut, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, float]]:
        """The batch to train on, and metrics."""
        kept = copy.deepcopy(rows) if self._limit else []  # rewards and rollout functions write into rows
        batch, dull_G = roll_out(rows)
        dull, rolled_out = self._agreed(dull_G), 0
        self.sources = [(0, group) for group in range(len(dull_G))]
        prompts = self._prompts_of(dull, kept) if self._limit and dull else {}
        for number in range(1, self._limit + 1):
            if not dull:
                break
            dealt = deal(dull, self._group_size, self._ranks.number)
            rolled_out += len(dealt)
            again, dull_again_G = roll_out(self._share([prompts[group] for group in dealt]))
            taken = first_lessons(dealt, self._agreed(dull_again_G))
            if taken:
                batch = self._merged(batch, again, taken)
            for group, place in taken.items():
                self.sources[group] = number, place
            dull = [group for group in dull if group not in taken]
        metrics = {}
        if self._group_size > 1:  # alone, a rollout has nothing to be compared with
            metrics["groups/teach_nothing"] = len(dull) / len(dull_G)
        if self._limit:
            metrics["groups/resampled"] = float(rolled_out)
        return batch, metrics

    def _agreed(self, dull_G: Tensor) -> list[int]:
        """Numbers of the groups that any rank finds dull: devices may round to unlike sides of the tolerance."""
        return [group for group, dull in enumerate(self._ranks.max_each(dull_G.int().tolist())) if dull]

    def _prompts_of(self, groups: Sequence[int], rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """The row of each of these groups, from the rank that has the group's first rollout."""
        first = self._ranks.index * len(rows)
        mine = [(group, group * self._group_size - first) for group in groups]
        sent = [(group, rows[i]) for group, i in mine if 0 <= i < len(rows)]
        return {group: row for of_rank in self._ranks.gather_lists(sent) for group, row in of_rank}

    def _share(self, prompts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """This rank's part of the rows of these groups, all of them objects of their own."""
        number = len(prompts) * self._group_size // self._ranks.number
        first = self._ranks.index * number
        return [copy.deepcopy(prompts[i // self._group_size]) for i in range(first, first + number)]

    def _merged(self, batch: dict[str, Any], again: dict[str, Any], taken: dict[int, int]) -> dict[str, Any]:
        """The batch with the groups that were taken from a later one, of which each rank has some rows."""
        size = self._group_size
        rows, rows_again = to_rows(batch, self._pad_id), to_rows(again, self._pad_id)
        first, first_again = self._ranks.index * len(rows), self._ranks.index * len(rows_again)
        sent = []
        for group, place in taken.items():
            for member in range(size):
                i = place * size + member - first_again
                if 0 <= i < len(rows_again):
                    # Copies: a part of a tensor would be sent with all of it.
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
