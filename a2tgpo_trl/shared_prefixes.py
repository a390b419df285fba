"""rows of which several begin alike -> their log-probabilities, by a forward that reads each token once.

    plain   a b c d e f .      once   a b c d e f | c g h | e i
            a b c g h . .             (row 0)      (row 1) (row 2)
            a b c d e i .

Rollouts of a prompt have it in common, often a first call and its result as well, and some are the same to the end.
What a layer computes per token (projections, norms) it computes once for equal tokens that follow equal beginnings,
and never for padding. Its attention reads the rows as they were, taking the tokens of a row from the one long row that
contains each once. A row's own part begins with a copy of the last token that it shares, which predicts the first of
its own.

Shapes: R rows of up to C tokens without the last, which predicts nothing; N tokens that are read; T of completions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .log_probabilities import NOT_SCORED, Autocast, obstacle_to_scoring, scored
from .models import (
    SLIDING,
    attention_implementation,
    evaluation_mode,
    layer_kinds,
    obstacle_to_layouts,
    positions_are_relative,
)
from .precision import EXACT


SHARED_SDPA = "a2tgpo_shared_sdpa"


def obstacle_to_sharing(model: PreTrainedModel) -> str | None:
    """Why rows of this model must be read one by one, in words; None if they need not."""
    config = model.config.get_text_config()
    if obstacle := obstacle_to_layouts(model) or obstacle_to_scoring(model):
        return obstacle
    if config._attn_implementation not in ("sdpa", SHARED_SDPA):
        return f"its attention is {config._attn_implementation}, not sdpa"
    if not positions_are_relative(model):
        return "its positions count from the first column"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention caps logits"
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        return "it is split over several devices"
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        return "a mixture of experts balances its load by all tokens"
    return None


def sharing_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Attention that handles shared rows, for forwards and for what gradient checkpointing computes again."""
    return attention_implementation(model.config.get_text_config(), SHARED_SDPA)


# ---- which tokens are read


def shared_lengths(rows: Sequence[Sequence[int]]) -> dict[int, int]:
    """For each row, in sorted order, the number of leading tokens that need not be read again.

    These are the tokens in common with the row before, minus one: the last of them has a different successor, which it
    must predict. No earlier row has more in common.

    Example: abcdef, abcgh, abcdei -> {0: 0, 2: 4, 1: 2}
    """
    order = sorted(range(len(rows)), key=lambda row: tuple(rows[row]))
    alike = [_in_common(rows[before], rows[row]) for before, row in zip(order, order[1:], strict=False)]
    return dict(zip(order, [0, *(max(length - 1, 0) for length in alike)], strict=True))


def _in_common(one: Sequence[int], other: Sequence[int]) -> int:
    length = min(len(one), len(other))
    differs = np.asarray(one[:length]) != np.asarray(other[:length])
    return int(differs.argmax()) if differs.any() else length


def tokens_read(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens a forward reads of these rows, without their last tokens and with common ones once."""
    return sum(_own_lengths(rows, shared_lengths(rows)).values())


def _own_lengths(rows: Sequence[Sequence[int]], shared: Mapping[int, int]) -> dict[int, int]:
    """How many tokens each row adds to those before it."""
    return {row: max(len(rows[row]) - 1 - length, 0) for row, length in shared.items()}


@dataclass(frozen=True)
class Bucket:
    """Rows whose own parts have similar lengths, of up to U tokens: their attention is one call."""

    queries_RU: Tensor  # which of the tokens that are read
    keys_RC: Tensor
    positions_RU: Tensor  # of the queries in their rows
    valid: Tensor  # which of all R x U queries are not padding

    def mask(self, window: int | None) -> Tensor:
        """True (R,1,U,C) where a token sees another: one not after it and, in a sliding layer, within its window."""
        positions_RU1 = self.positions_RU.unsqueeze(2)
        columns = torch.arange(self.keys_RC.size(1), device=positions_RU1.device)
        seen = positions_RU1 >= columns
        return (seen if window is None else seen & (positions_RU1 < columns + window)).unsqueeze(1)


@dataclass(frozen=True)
class SharedRows:
    """The inputs of a forward, and where the rows are in its result."""

    ids_1N: Tensor
    positions_1N: Tensor
    labels_1N: Tensor  # what each token predicts; NOT_SCORED where no row wants it
    masks: Tensor | dict[str, Tensor]  # (1,1,1,M): of all buckets, concatenated; one for each kind of layer
    buckets: list[Bucket]
    index_RT: Tensor  # which token predicts this one of a completion
    scored_RT: Tensor

    def of_rows(self, found_1N: Tensor) -> Tensor:
        """Values of the tokens that are read -> values of completions (R,T)."""
        return found_1N[0][self.index_RT].masked_fill(~self.scored_RT, 0.0)


def shared_rows(ids: Tensor, attention_mask: Tensor, scored_RT: Tensor, config: PreTrainedConfig) -> SharedRows | None:
    """Rows of prompt and completion, padded on the left and on the right, with shared beginnings read once.

    `scored_RT`: which tokens of the completions are scored. Returns None if sharing would not pay.
    """
    # On the CPU, so that the device is waited for only once.
    device, ids, real, scored = ids.device, ids.cpu(), attention_mask.bool().cpu(), scored_RT.bool().cpu()
    rows = [row[kept].tolist() for row, kept in zip(ids, real, strict=True)]
    shared = shared_lengths(rows)
    own = _own_lengths(rows, shared)
    number = sum(own.values())
    if not _pays(number, real[:, 1:]):
        return None
    grouped = _of_like_lengths(own)
    order = [row for group in grouped for row in group]
    index = _index(shared, own, order)
    buckets = [_bucket([index[row] for row in group], [own[row] for row in group], device) for group in grouped]
    windows = {kind: config.sliding_window if kind == SLIDING else None for kind in layer_kinds(config)}
    masks = {
        kind: torch.cat([bucket.mask(window).flatten() for bucket in buckets]) for kind, window in windows.items()
    }
    masks = {kind: mask.view(1, 1, 1, -1) for kind, mask in masks.items()}
    index_RT = _of_completions(index, real, scored.size(1))
    labels_N = torch.full((number,), NOT_SCORED)
    labels_N[index_RT[scored]] = ids[:, -scored.size(1) :][scored]
    return SharedRows(
        ids_1N=_joined([rows[row][shared[row] : -1] for row in order], device),
        positions_1N=_joined([range(shared[row], len(rows[row]) - 1) for row in order], device),
        labels_1N=labels_N.unsqueeze(0).to(device),
        masks=masks if len(masks) > 1 else next(iter(masks.values())),
        buckets=buckets,
        index_RT=index_RT.to(device),
        scored_RT=scored.to(device),
    )


# Plain rows without padding use the causal kernel, which needs no mask: a small saving is not worth losing it.
WORTH_A_MASK = 0.75


def _pays(number: int, real: Tensor) -> bool:
    """Whether reading `number` tokens is better than reading these rows as they are."""
    most = real.numel() if not real.all() else real.numel() * WORTH_A_MASK
    return len(real) > 1 and 0 < number < most


def _of_like_lengths(own: Mapping[int, int]) -> list[list[int]]:
    """Rows that have their own tokens, in groups in which none has twice as many as another."""
    groups: list[list[int]] = []
    for row in sorted(own, key=lambda row: -own[row]):
        if groups and own[row] * 2 > own[groups[-1][0]]:
            groups[-1].append(row)
        elif own[row]:
            groups.append([row])
    return groups


def _index(shared: Mapping[int, int], own: Mapping[int, int], order: Sequence[int]) -> dict[int, np.ndarray]:
    """Which of the tokens that are read each row consists of, if the rows' own parts are read in this order."""
    ends = np.cumsum([own[row] for row in order])
    first = dict(zip(order, ends - [own[row] for row in order], strict=True))
    index: dict[int, np.ndarray] = {}
    before = np.arange(0)
    for row, length in shared.items():
        start = first.get(row, 0)
        before = index[row] = np.concatenate([before[:length], np.arange(start, start + own[row])])
    return index


def _bucket(index: Sequence[np.ndarray], own: Sequence[int], device: torch.device) -> Bucket:
    keys, positions = np.zeros((len(index), max(map(len, index))), int), np.zeros((len(index), max(own)), int)
    queries, valid = np.zeros_like(positions), np.zeros_like(positions, bool)
    for row, (of_row, number) in enumerate(zip(index, own, strict=True)):
        keys[row, : len(of_row)] = of_row
        queries[row, :number] = of_row[-number:]
        positions[row, :number] = range(len(of_row) - number, len(of_row))
        valid[row, :number] = True
    parts = (queries, keys, positions, np.flatnonzero(valid))
    return Bucket(*(torch.from_numpy(part).to(device) for part in parts))


def _of_completions(index: Mapping[int, np.ndarray], real: Tensor, completion: int) -> Tensor:
    """Which of the tokens that are read precede those of the completions (R,T); 0 for padding."""
    found = np.zeros(real.shape, int)
    for row, kept in enumerate(real.numpy()):
        places = np.flatnonzero(kept)
        found[row, places[1:]] = index[row]
    return torch.from_numpy(found[:, -completion:])


def _joined(parts: Iterable[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([[number for part in parts for number in part]], device=device)


# ---- how they are read


class GatherTokens(torch.autograd.Function):
    """Tokens (N,H,D) at these places, some several times: gradients are added up in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(states)
        return states.index_select(0, index.flatten()).unflatten(0, index.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        sums = gradient.new_zeros(ctx.size, *gradient.shape[2:], dtype=torch.float32)
        sums.index_add_(0, index.flatten(), gradient.flatten(0, 1).float())
        return sums.to(gradient.dtype), None


class BucketsLost(RuntimeError):
    """Layers of a model do not pass on to their attention what its forward is given."""


def _shared_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_buckets: Sequence[Bucket] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention (1,N,H,D) of tokens that are read once, each in a row that contains it; other rows get plain sdpa."""
    if shared_buckets is None or attention_mask is None:
        if attention_mask is not None and attention_mask.size(2) < query.size(2):
            raise BucketsLost
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    of_queries, of_keys, of_values = (states[0].transpose(0, 1) for states in (query, key, value))
    sizes = [bucket.queries_RU.numel() * bucket.keys_RC.size(1) for bucket in shared_buckets]
    found = []
    for bucket, mask in zip(shared_buckets, attention_mask.flatten().split(sizes), strict=True):
        wanted = ((of_queries, bucket.queries_RU), (of_keys, bucket.keys_RC), (of_values, bucket.keys_RC))
        chosen = (GatherTokens.apply(states, index).transpose(1, 2) for states, index in wanted)
        rows, queries = bucket.queries_RU.shape
        result, _ = sdpa_attention_forward(module, *chosen, mask.view(rows, 1, queries, -1), **kwargs)
        found.append(result.flatten(0, 1).index_select(0, bucket.valid))
    return torch.cat(found).unsqueeze(0), None


AttentionInterface.register(SHARED_SDPA, _shared_sdpa)
AttentionMaskInterface.register(SHARED_SDPA, sdpa_mask)


def score_shared(
    model: nn.Module, base: PreTrainedModel, rows: SharedRows, autocast: Autocast = nullcontext
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies of completions (R,T); call it in `sharing_attention`. `model` wraps `base`."""
    logps, entropies = scored(
        model,
        base,
        rows.labels_1N,
        autocast,
        input_ids=rows.ids_1N,
        attention_mask=rows.masks,
        position_ids=rows.positions_1N,
        shared_buckets=rows.buckets,
    )
    return rows.of_rows(logps), None if entropies is None else rows.of_rows(entropies)


# ---- whether a model computes the same


# How far log-probabilities of shared and plain rows may differ on average by rounding, in float32 and in 16 bits.
IN_FLOAT32, COARSE = 1e-4, 0.05


@torch.no_grad()
def sharing_error(
    model: nn.Module, base: PreTrainedModel, device: torch.device, autocast: Autocast = nullcontext
) -> float:
    """Mean difference of log-probabilities between shared and plain rows, on a small random example.

    A model's kind of attention does not tell what its code does. Every rank makes two forwards of `model`, which wraps
    `base`.
    """
    generator = torch.Generator().manual_seed(0)
    size = (6, 24)  # two prompts of up to 12 tokens, three completions of up to 12 each, two of which begin alike
    config = base.config.get_text_config()
    ids = torch.randint(config.vocab_size, size, generator=generator)
    ids[1:3, :12], ids[4:6, :12], ids[5, 12:16] = ids[0, :12], ids[3, :12], ids[4, 12:16]
    place = torch.arange(24)
    first, last = torch.tensor([0, 0, 0, 5, 5, 5]).unsqueeze(1), torch.tensor([24, 17, 20, 13, 24, 19]).unsqueeze(1)
    mask = ((place >= first) & (place < last)).long()
    ids, mask = ids.to(device), mask.to(device)
    completions = mask[:, 12:]
    labels = ids.masked_fill(mask == 0, NOT_SCORED)
    labels[:, :12] = NOT_SCORED
    with evaluation_mode(model), _narrow_window(config):
        rows = shared_rows(ids, mask, completions, config)
        assert rows is not None
        with autocast():
            plain = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs[:, -12:]
        with sharing_attention(base):
            shared, _ = score_shared(model, base, rows, autocast)
    return (shared - plain)[completions.bool()].abs().mean().item()


@contextmanager
def _narrow_window(config: PreTrainedConfig) -> Iterator[None]:
    """Make a sliding window narrow enough that a small example reaches beyond it."""
    if SLIDING not in layer_kinds(config):
        yield
        return
    window = config.sliding_window
    config.sliding_window = 7
    try:
        yield
    finally:
        config.sliding_window = window


def sharing_tolerance(unit: float) -> float:
    """The largest acceptable `sharing_error`, given how far the forward rounds numbers near 1 (`unit`)."""
    return IN_FLOAT32 if unit <= EXACT else COARSE
