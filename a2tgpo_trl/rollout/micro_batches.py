"""rows of a batch -> the same rows in micro-batches that compute less.

TRL draws at random which rows share a micro-batch. If their gradients are added up before the policy changes, and each
row adds the same wherever it is, any other distribution of the rows gives the same sum. Three orders are compared by
how much their forwards would read: rows of similar lengths together, which need less padding; rollouts of a prompt
together; and, among these, rollouts that go on alike (`shared_prefixes`).
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..shared_prefixes import tokens_read


# Losses that are a sum over rows, each of which has the same weight in any micro-batch.
SUMS_OF_ROWS = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo")

Row = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a prompt and of its completion


def arranged(batches: Sequence[Mapping[str, Any]], together: int, share_prefixes: bool) -> list[dict[str, Any]]:
    """Exchange rows within each `together` neighbouring micro-batches, whose sizes stay the same.

    Args:
        together: micro-batches whose gradients are added up before the policy changes.
        share_prefixes: whether a forward reads only once what its rows have in common at their beginning.
    """
    return [
        batch
        for start in range(0, len(batches), together)
        for batch in _arranged(batches[start : start + together], share_prefixes)
    ]


def _arranged(batches: Sequence[Mapping[str, Any]], share_prefixes: bool) -> list[dict[str, Any]]:
    of_rows = [key for key, values in batches[0].items() if isinstance(values, Tensor) and values.dim() > 0]
    joined = {key: torch.cat([batch[key] for batch in batches]) for key in of_rows}
    size = len(batches[0]["prompt_ids"])
    index = torch.tensor(best_order(_rows(joined), size, share_prefixes), device=joined["prompt_ids"].device)
    chosen = {key: rows[index].split(size) for key, rows in joined.items()}
    return [{**batch, **{key: rows[i] for key, rows in chosen.items()}} for i, batch in enumerate(batches)]


def _rows(batch: Mapping[str, Any]) -> list[Row]:
    prompts, completions = (
        [
            tuple(ids[real.bool()].tolist())
            for ids, real in zip(batch[f"{part}_ids"].cpu(), batch[f"{part}_mask"].cpu(), strict=True)
        ]
        for part in ("prompt", "completion")
    )
    return list(zip(prompts, completions, strict=True))


def best_order(rows: Sequence[Row], size: int, share_prefixes: bool) -> list[int]:
    """The order in which micro-batches of this size read least.

    The longest rows come first, so that running out of memory shows immediately.
    """

    def cost(order: Sequence[int]) -> int:
        batches = ([rows[i] for i in order[start : start + size]] for start in range(0, len(order), size))
        return sum(map(_read_once if share_prefixes else _read_with_padding, batches))

    return min([_by_length(rows), _by_prompt(rows), _by_tokens(rows)], key=cost)


def _read_once(rows: Sequence[Row]) -> int:
    return tokens_read([prompt + completion for prompt, completion in rows])


def _read_with_padding(rows: Sequence[Row]) -> int:
    return len(rows) * sum(max(map(len, parts)) for parts in zip(*rows, strict=True))


def _by_length(rows: Sequence[Row]) -> list[int]:
    return sorted(range(len(rows)), key=lambda i: (-len(rows[i][1]), -len(rows[i][0])))


def _by_prompt(rows: Sequence[Row]) -> list[int]:
    by_prompt = sorted(range(len(rows)), key=lambda i: (rows[i][0], -len(rows[i][1])))
    groups = [list(group) for _, group in groupby(by_prompt, key=lambda i: rows[i][0])]
    return [i for group in sorted(groups, key=lambda group: -len(rows[group[0]][1])) for i in group]


def _by_tokens(rows: Sequence[Row]) -> list[int]:
    """Rollouts of a prompt that begin alike, side by side."""
    by_tokens = sorted(range(len(rows)), key=lambda i: rows[i])
    groups = [list(group) for _, group in groupby(by_tokens, key=lambda i: rows[i][0])]
    return [i for group in sorted(groups, key=lambda group: -max(len(rows[i][1]) for i in group)) for i in group]
