"""rollouts, probes -> rows of tokens, some for each forward -> input tensors, and where each score belongs.

A packed row holds a rollout and its probes (`packed_attention`); a single row holds one context and one probe.

Shapes: B rollouts, K contexts, A accepted answers, R rows of one forward, L tokens of a row.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..log_probabilities import NOT_SCORED
from ..rollout.batch import Rollouts
from .packed_attention import Layout, attention_mask
from .probes import Probe


# Compiled FlexAttention works in blocks of 128. On CPUs, torch 2.13 computes wrong numbers at some other lengths
# (104, for example, even with plain causal attention), so rows are padded to whole blocks for it.
FLEX_BLOCK = 128

# Numbers of this rank -> the largest of each over all ranks
Agree = Callable[[list[int]], list[int]]


@dataclass
class Row:
    """Tokens of a rollout (or its beginning) and the probes to score after some of them."""

    rollout: int
    tokens: list[int]
    scored_from: int  # first token whose log-probability is wanted; len(tokens) for none
    probes: list[tuple[int, int, Probe]] = field(default_factory=list)  # (context length, slot of its value, probe)

    @property
    def probe_length(self) -> int:
        return sum(len(probe.ids) for _, _, probe in self.probes)


def last_context(probe: Probe, most: int | None) -> int:
    """Return the longest context after which a model that reads `most` tokens can still read this probe."""
    return sys.maxsize if most is None else max(most - len(probe.ids) + 1, 1)


def unread_slots(
    contexts: list[list[int]], probes: Sequence[Sequence[Probe]], shape: tuple[int, ...], most: int | None
) -> list[int]:
    """Return the slots of probes that do not fit: each is scored after a shorter context, so that rows stay valid."""
    return [
        slot
        for i, lengths in enumerate(contexts)
        for length, slot, probe in _slots(i, lengths, probes[i], shape, None)
        if length > last_context(probe, most)
    ]


def packed_rows(
    rollouts: Rollouts,
    contexts: list[list[int]],
    probes: Sequence[Sequence[Probe]],
    shape: tuple[int, ...],
    most: int | None,
    want_logps: bool,
) -> list[Row]:
    rows = []
    for i, lengths in enumerate(contexts):
        tokens = [*rollouts.prompt_ids[i], *rollouts.completion_ids[i]]
        row = Row(i, tokens, len(rollouts.prompt_ids[i]) if want_logps else len(tokens))
        row.probes = list(_slots(i, lengths, probes[i], shape, most))
        rows.append(row)
    return rows


def single_rows(
    rollouts: Rollouts,
    contexts: list[list[int]],
    probes: Sequence[Sequence[Probe]],
    shape: tuple[int, ...],
    most: int | None,
) -> list[Row]:
    return [
        Row(i, [*rollouts.prompt_ids[i], *rollouts.completion_ids[i]][:length], length, [(length, slot, probe)])
        for i, lengths in enumerate(contexts)
        for length, slot, probe in _slots(i, lengths, probes[i], shape, most)
    ]


def _slots(
    i: int, lengths: list[int], probes: Sequence[Probe], shape: tuple[int, ...], most: int | None
) -> Iterator[tuple[int, int, Probe]]:
    """Each probe of rollout i, with the context length that leaves room for it and its flat index in (B,K,A)."""
    for k, length in enumerate(lengths):
        for a, probe in enumerate(probes):
            yield min(length, last_context(probe, most)), (i * shape[1] + k) * shape[2] + a, probe


def chunks(rows: list[Row], token_budget: int, agree: Agree) -> Iterator[tuple[list[Row], bool]]:
    """Yield rows of similar length for each forward, as many forwards as any rank needs; False marks a stand-in.

    A forward takes at least one row, and more while all of them, padded to the widest, fit the budget. Rows are taken
    from the longest down, so that a long row adds padding only to its own forward.

    Example: rows of 10, 4, 4, 4 and 3 tokens, budget 12 -> [10], [4, 4, 4], [3]
    """
    rows = sorted(rows, key=lambda row: len(row.tokens) + row.probe_length, reverse=True)
    packs: list[list[Row]] = []
    for row in rows:
        if packs and _padded_tokens([*packs[-1], row]) <= token_budget:
            packs[-1].append(row)
        else:
            packs.append([row])
    (most,) = agree([len(packs)])
    yield from ((pack, True) for pack in packs)
    yield from [(rows[-1:], False)] * (most - len(packs))


def _padded_tokens(rows: list[Row]) -> int:
    return len(rows) * (max(len(row.tokens) for row in rows) + max(row.probe_length for row in rows))


@dataclass(frozen=True)
class Batch:
    inputs: tuple[Tensor, Tensor, object, Tensor | None]  # arguments of a Scorer
    slots: Tensor  # (R,L) index of each scored probe token's value, -1 elsewhere; on the CPU


def _pad(rows: list[list[int]], fill: int, width: int = 0) -> Tensor:
    """A tensor of ragged rows, padded on the right to the longest of them, or to `width` if that is more."""
    padded = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=fill)
    return nn.functional.pad(padded, (0, max(width - padded.size(1), 0)), value=fill)


def _whole_blocks(length: int, block: int) -> int:
    return -(-length // block) * block


def _gold(probe: Probe, slot: int) -> tuple[list[int], list[int]]:
    """Next ids and slots of a probe, set only for its answer tokens."""
    next_ids = [token if is_gold else NOT_SCORED for token, is_gold in zip(probe.ids, probe.gold, strict=True)]
    return next_ids, [slot if is_gold else -1 for is_gold in probe.gold]


def collate_single(rows: list[Row], model: PreTrainedModel, block: int, device: torch.device) -> Batch:
    """Put context and probe in one plain row, padded on the right, which any causal model can read."""
    ids, next_ids, slots = [], [], []
    for row in rows:
        (length, slot, probe) = row.probes[0]
        probe_next, probe_slots = _gold(probe, slot)
        ids.append([*row.tokens, *probe.ids[:-1]])
        next_ids.append([NOT_SCORED] * (length - 1) + probe_next)
        slots.append([-1] * (length - 1) + probe_slots)
    width = _whole_blocks(max(map(len, ids)), block)
    inputs = _pad(ids, 0, width).to(device), _pad(next_ids, NOT_SCORED, width).to(device)
    real = _pad([[1] * len(row) for row in ids], 0, width).to(device)
    return Batch((*inputs, real, None), _pad(slots, -1, width))


def collate_packed(rows: list[Row], model: PreTrainedModel, block: int, device: torch.device) -> Batch:
    """Put rollouts, then their probes in rows. Before each goes a copy of its last context token, which predicts it.

    The copy has that token's position and sees what it sees, so it computes the same; the original's own prediction
    stays free for the next rollout token.
    """
    width = max(len(row.tokens) for row in rows)
    places = torch.arange(width).expand(len(rows), -1)
    unscored = [min(row.scored_from, len(row.tokens)) - 1 for row in rows]
    rollout_next = [[NOT_SCORED] * first + row.tokens[first + 1 :] for first, row in zip(unscored, rows, strict=True)]
    rollout = {
        "id": _pad([row.tokens for row in rows], 0),
        "next": _pad(rollout_next, NOT_SCORED, width),
        "slot": torch.full_like(places, -1),
        "position": places,
        "block": torch.zeros_like(places),
        "seen": torch.zeros_like(places),
    }
    columns = [_probe_columns(row) for row in rows]
    fills = {"id": 0, "next": NOT_SCORED, "slot": -1, "position": 0, "block": -1, "seen": 0}
    probe_width = _whole_blocks(width + max(row.probe_length for row in rows), block) - width
    both = {
        name: torch.cat([rollout[name], _pad([column[name] for column in columns], fill, probe_width)], dim=1)
        for name, fill in fills.items()
    }
    on_device = {name: tensor.to(device) for name, tensor in both.items()}
    layout = Layout(on_device["block"], on_device["seen"], on_device["position"], width)
    mask = attention_mask(model.config.get_text_config(), layout, model.dtype)
    return Batch((on_device["id"], on_device["next"], mask, on_device["position"]), both["slot"])


def _probe_columns(row: Row) -> dict[str, list[int]]:
    """The probe tokens of a row: id, next id, slot, position, and what the attention rule needs."""
    columns: dict[str, list[int]] = {name: [] for name in ("id", "next", "slot", "position", "block", "seen")}
    for number, (length, slot, probe) in enumerate(row.probes, start=1):
        next_ids, slots = _gold(probe, slot)
        size = len(probe.ids)
        columns["id"] += [row.tokens[length - 1], *probe.ids[:-1]]
        columns["next"] += next_ids
        columns["slot"] += slots
        columns["position"] += range(length - 1, length - 1 + size)
        columns["block"] += [number] * size
        columns["seen"] += [length - 1] * size
    return columns
