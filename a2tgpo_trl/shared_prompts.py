"""rows of which several have one prompt -> their log-probabilities, by a forward that reads each prompt once.

    plain   [ prompt | completion 1 ]        shared   [ prompt | completion 1 | completion 2 | ... ]
            [ prompt | completion 2 ]

What a layer computes of single tokens (projections, norms), it computes of a prompt once. Its attention takes each
completion together with the prompt, as plain rows do, by the mask that plain rows have. The last token of the prompt,
which predicts the first of each completion, counts to the completions: each begins with a copy.

Shapes: R rows, S prompts of G rows each, P prompt tokens without the last, T completion tokens, C = P + T columns.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

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


def is_shared(model: PreTrainedModel) -> bool:
    """Whether its attention knows shared rows now."""
    return model.config.get_text_config()._attn_implementation == SHARED_SDPA


def tokens_read(rows: Sequence[tuple[Any, int]], shares: bool) -> int:
    """Tokens of a forward over these rows, padding included; of each a prompt and the length of its completion."""
    prompt = max(len(prompt) for prompt, _ in rows) - 1
    number = len(rows) // group_size([prompt for prompt, _ in rows]) if shares else len(rows)
    return number * prompt + len(rows) * (max(length for _, length in rows))


def group_size(prompts: Sequence[Any]) -> int:
    """How many neighbouring rows can be had for each prompt, the same number for all.

    Example: a, a, a, a, b, b -> 2: the prompt a is read twice, b once
    """
    return math.gcd(*(len(list(group)) for _, group in groupby(prompts)))


def obstacle_to_sharing(model: PreTrainedModel) -> str | None:
    """Why prompts of this model are not shared, in words; None if they are."""
    config = model.config.get_text_config()
    if obstacle := obstacle_to_layouts(model) or obstacle_to_scoring(model):
        return obstacle
    if config._attn_implementation not in ("sdpa", SHARED_SDPA):
        return f"its attention is {config._attn_implementation}, and not sdpa"
    if not positions_are_relative(model):
        return "its positions count from the first column"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention caps logits"
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        return "a mixture of experts balances its load by all tokens"
    return None


def sharing_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Attention that knows shared rows, for forwards and for what gradient checkpointing computes once more."""
    return attention_implementation(model.config, SHARED_SDPA)


@dataclass(frozen=True)
class SharedRows:
    """What a forward takes, and where in its result the rows are."""

    ids: Tensor  # (S, P + G T)
    positions: Tensor
    next_ids: Tensor  # what each token predicts; NOT_SCORED for the prompts and for what is not scored
    mask: Tensor | dict[str, Tensor]  # (R,1,C,C), of plain rows; one for each kind of layer if there are two
    rows: int
    prompt: int

    def of_rows(self, found: Tensor) -> Tensor:
        """Numbers of all tokens (S, P + G T) -> those of completions (R,T)."""
        return found[:, self.prompt :].reshape(self.rows, -1)


def shared_rows(ids: Tensor, attention_mask: Tensor, scored_RT: Tensor, config: PreTrainedConfig) -> SharedRows | None:
    """Rows of prompt and completion, padded on the left and on the right, with their prompts shared.

    `scored_RT`: which tokens of the completions are scored. None where no neighbours have the same prompt, or none
    that could be shared.
    """
    completion = scored_RT.size(1)
    prompts = ids[:, :-completion].masked_fill(attention_mask[:, :-completion] == 0, -1)
    group, prompt = group_size([tuple(row) for row in prompts.tolist()]), prompts.size(1) - 1
    if group == 1 or prompt == 0:
        return None
    next_ids = ids[:, -completion:].masked_fill(scored_RT == 0, NOT_SCORED)
    real = attention_mask[:, :-1].bool()
    positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)

    def folded(first: Tensor, others: Tensor) -> Tensor:
        return torch.cat([first[::group], others.reshape(len(others) // group, -1)], dim=1)

    return SharedRows(
        folded(ids[:, :prompt], ids[:, prompt:-1]),
        folded(positions[:, :prompt], positions[:, prompt:]),
        folded(torch.full_like(ids[:, :prompt], NOT_SCORED), next_ids),
        _masks(real, config),
        len(ids),
        prompt,
    )


def _masks(real_RC: Tensor, config: PreTrainedConfig) -> Tensor | dict[str, Tensor]:
    """True where a token sees another: not after it, no padding, and in a sliding layer within its window."""
    place = torch.arange(real_RC.size(1), device=real_RC.device)
    back = place.unsqueeze(1) - place
    allowed = (back >= 0) & real_RC.unsqueeze(1)
    masks = {}
    for kind in layer_kinds(config):
        seen = allowed & (back < config.sliding_window) if kind == SLIDING else allowed
        masks[kind] = (seen | (back == 0)).unsqueeze(1)  # padding sees itself, or its attention would be no number
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _shared_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of the prompts among themselves, then of the completions over their prompts and themselves.

    It is known by its mask, which has a row for each completion. With any other it is plain sdpa.
    """
    if attention_mask is None or attention_mask.size(0) in (1, len(query)):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    group = len(attention_mask) // len(query)
    completion = (query.size(2) - attention_mask.size(3)) // (group - 1)
    prompt = attention_mask.size(3) - completion

    def own(states: Tensor) -> Tensor:  # (S,H,P + G T,D) -> (R,H,T,D)
        return states[:, :, prompt:].unflatten(2, (group, completion)).transpose(1, 2).flatten(0, 1)

    def seen(states: Tensor) -> Tensor:  # -> (R,H,C,D)
        return torch.cat([states[:, :, :prompt].repeat_interleave(group, dim=0), own(states)], dim=2)

    of_prompts = attention_mask[::group, :, :prompt, :prompt]
    first, _ = sdpa_attention_forward(
        module, query[:, :, :prompt], key[:, :, :prompt], value[:, :, :prompt], of_prompts, **kwargs
    )
    others, _ = sdpa_attention_forward(
        module, own(query), seen(key), seen(value), attention_mask[:, :, prompt:], **kwargs
    )
    return torch.cat([first, others.reshape(len(query), group * completion, *others.shape[2:])], dim=1), None


AttentionInterface.register(SHARED_SDPA, _shared_sdpa)
AttentionMaskInterface.register(SHARED_SDPA, sdpa_mask)


def score_shared(
    model: nn.Module, base: PreTrainedModel, rows: SharedRows, autocast: Autocast = nullcontext
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies of the completions (R,T); in `sharing_attention`. `model` wraps `base`."""
    logps, entropies = scored(
        model,
        base,
        rows.next_ids,
        autocast,
        input_ids=rows.ids,
        attention_mask=rows.mask,
        position_ids=rows.positions,
    )
    return rows.of_rows(logps), None if entropies is None else rows.of_rows(entropies)


# What log-probabilities of shared and plain rows may differ by on average: by rounding, in float32 and in 16 bits.
IN_FLOAT32, COARSE = 1e-4, 0.05


@torch.no_grad()
def sharing_error(
    model: nn.Module, base: PreTrainedModel, device: torch.device, autocast: Autocast = nullcontext
) -> float:
    """Mean difference of log-probabilities between shared and plain rows, on a small random example.

    Knowing a model's attention is not knowing its code. Every rank makes two forwards of `model`, which wraps `base`.
    """
    generator = torch.Generator().manual_seed(0)
    size = (6, 24)  # two prompts of up to 12 tokens, three completions of up to 12 each
    ids = torch.randint(base.get_input_embeddings().num_embeddings, size, generator=generator)
    ids[1:3, :12], ids[4:6, :12] = ids[0, :12], ids[3, :12]
    place = torch.arange(24)
    first, last = torch.tensor([0, 0, 0, 5, 5, 5]).unsqueeze(1), torch.tensor([24, 17, 20, 13, 24, 19]).unsqueeze(1)
    mask = ((place >= first) & (place < last)).long()
    ids, mask = ids.to(device), mask.to(device)
    completions = mask[:, 12:]
    rows = shared_rows(ids, mask, completions, base.config.get_text_config())
    assert rows is not None
    labels = ids.masked_fill(mask == 0, NOT_SCORED)
    labels[:, :12] = NOT_SCORED
    with evaluation_mode(model):
        with autocast():
            plain = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs[:, -12:]
        with sharing_attention(base):
            shared, _ = score_shared(model, base, rows, autocast)
    return (shared - plain)[completions.bool()].abs().mean().item()


def sharing_tolerance(unit: float) -> float:
    """By the rounding of numbers near 1 (`unit`) in the precision of the forward."""
    return IN_FLOAT32 if unit <= EXACT else COARSE
