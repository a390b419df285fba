"""rows of tokens -> log-probabilities and entropies of those that are wanted, by TRL's fused head over these alone.

A head has a row of weights for every word of the vocabulary. Results of tools and padding are read, but not sampled;
no loss contains their log-probabilities.

Shapes: R rows, C columns.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


NOT_SCORED = -100  # in the place of a token's id
Autocast = Callable[[], AbstractContextManager]


def obstacle_to_scoring(base: PreTrainedModel) -> str | None:
    """Why the head of this model must be given all tokens, in words; None if it need not."""
    return "it has no inner model that its head could be separated from" if base.base_model is base else None


def scored(
    model: nn.Module, base: PreTrainedModel, labels_RC: Tensor, autocast: Autocast = nullcontext, **inputs: Any
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies (R,C) of the next tokens, named by `labels_RC`; 0 where it says NOT_SCORED.

    `model` wraps `base`, to which TRL has given its fused head.
    """
    wanted_RC = labels_RC != NOT_SCORED
    places_W = wanted_RC.flatten().nonzero().squeeze(1)

    def select(_module: nn.Module, _inputs: Any, found: ModelOutput) -> ModelOutput:
        states = found.last_hidden_state
        found.last_hidden_state = states.flatten(0, 1).index_select(0, places_W.to(states.device)).unsqueeze(0)
        return found

    hook = base.base_model.register_forward_hook(select)
    try:
        with autocast():
            labels_1W = labels_RC.flatten()[places_W].unsqueeze(0)
            found = model(**inputs, shift_labels=labels_1W, fused_lm_head=True)
    finally:
        hook.remove()
    return _placed(found.log_probs, wanted_RC), None if found.entropy is None else _placed(found.entropy, wanted_RC)


def _placed(found_1W: Tensor, wanted_RC: Tensor) -> Tensor:
    """Put what was found for wanted tokens in their places. It stays attached to the graph even if none is wanted."""
    wanted_RC = wanted_RC.to(found_1W.device)
    return found_1W.new_zeros(wanted_RC.shape).masked_scatter(wanted_RC, found_1W)


def scored_completions(
    model: nn.Module,
    base: PreTrainedModel,
    ids: Tensor,
    attention_mask: Tensor,
    sampled_RT: Tensor,
    autocast: Autocast = nullcontext,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies (R,T) of sampled tokens at the end of plain rows; 0 for other tokens."""
    first = ids.size(1) - sampled_RT.size(1) - 1  # the token that predicts the first of the completion
    labels_RC = torch.full_like(ids, NOT_SCORED)
    labels_RC[:, first:-1] = ids[:, first + 1 :].masked_fill(sampled_RT == 0, NOT_SCORED)
    logps, entropies = scored(model, base, labels_RC, autocast, input_ids=ids, attention_mask=attention_mask)
    return logps[:, first:-1], None if entropies is None else entropies[:, first:-1]
