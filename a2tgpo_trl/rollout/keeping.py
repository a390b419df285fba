"""a policy -> whether what it has read can be kept, judged by its kind of model and by a trial."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import GenerationMixin, LogitsProcessorList

from ..dropout import dropout_rates
from ..models import base_model, has_virtual_tokens, obstacle_to_layouts
from ..precision import EXACT
from .drawing import Sampling
from .engines import Tail
from .transformers_engine import TransformersStream


# Log-probabilities of kept and of newly read tokens may differ by this much through rounding, in float32 and in 16
# bits. A wrong mask or position moves them by more.
IN_FLOAT32, COARSE = 1e-3, 0.25


def obstacle_to_keeping(model: nn.Module) -> str | None:
    """Why turns of this model must be sampled by its own `generate`, in words; None if they can be sampled here."""
    base = base_model(model)
    if "generate" in {*vars(model), *vars(base)} or type(base).generate is not GenerationMixin.generate:
        return "it has its own `generate`"
    if getattr(base.config.get_text_config(), "num_kv_shared_layers", None):
        return "its layers share keys and values"
    if has_virtual_tokens(model):
        return "its adapter puts virtual tokens before the prompt"
    if rates := dropout_rates(model):
        return f"it samples with dropout ({', '.join(rates)})"
    return obstacle_to_layouts(base)


class _TrialTail(NamedTuple):
    ids: list[int]
    gold: list[bool]


@torch.no_grad()
def keeping_error(model: nn.Module, device: torch.device) -> float:
    """Largest difference of a token's log-probability between kept and newly read contexts, on a small random example.

    A model's kind of attention does not tell what its code does. A model that ignores positions or masks shows here.
    """
    base = base_model(model)
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(base.config.get_text_config().vocab_size, (count,), generator=generator).tolist()

    tails = [_TrialTail(tokens(4), [False, True, True, True]) for _ in range(2)]
    sampling = Sampling(LogitsProcessorList(), frozenset(), 2, draws=False)
    stream = TransformersStream(model, sampling, token_budget=2**20, device=device, tails=tails)
    contexts = [tokens(9), tokens(4)]
    error = 0.0
    for _ in range(3):
        for key, context in enumerate(contexts):
            stream.submit(key, context)
        while stream.has_work():
            for sample in stream.collect():
                context, tail = contexts[sample.key], tails[sample.key]
                plain = _plain_score(model, context, tail, device)
                error = max(error, abs(stream.scores[sample.key][len(context)].total - plain) / sum(tail.gold))
                contexts[sample.key] = [*context, *sample.ids, *tokens(3 + 2 * sample.key)]
    return error


def keeping_tolerance(unit: float) -> float:
    """The largest acceptable `keeping_error`, given how far the forward rounds numbers near 1 (`unit`)."""
    return IN_FLOAT32 if unit <= EXACT else COARSE


def _plain_score(model: nn.Module, context: Sequence[int], tail: Tail, device: torch.device) -> float:
    ids = torch.tensor([[*context, *tail.ids]], device=device)
    logps = (
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].float().log_softmax(-1)
    )
    found = logps[len(context) - 1 : -1].gather(1, ids[0, len(context) :].unsqueeze(1)).squeeze(1)
    return found[torch.tensor(tail.gold, device=found.device)].sum().item()
