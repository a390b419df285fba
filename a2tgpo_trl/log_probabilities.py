"""rows of tokens -> log-probabilities and entropies of those that are wanted, by TRL's fused head over these alone.

A head has a row of weights for every word of the vocabulary. Results of tools and padding are read, but not sampled;
their log-probabilities are in no loss.

Shapes: R rows, C columns.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


NOT_SCORED = -100  # in the place of a token's id
Autocast = Callable[[], AbstractContextManager]


def obstacle_to_scoring(base: PreTrainedModel) -> str | None:
    """Why the head of this model is given all tokens, in words; None if it is not."""
    return "it has no part before its head" if base.base_model is base else None


def scored(
    model: nn.Module, base: PreTrainedModel, next_RC: Tensor, autocast: Autocast = nullcontext, **inputs: Any
) -> tuple[Tensor, Tensor | None]:
    """Of the token that follows each one (R,C), as `next_RC` names it; 0 where it says NOT_SCORED.

    `model` wraps `base`, to which TRL has given its fused head.
    """
    wanted_RC = next_RC != NOT_SCORED

    def select(_module: nn.Module, _inputs: Any, found: ModelOutput) -> ModelOutput:
        states = found.last_hidden_state
        found.last_hidden_state = states[wanted_RC.to(states.device)].unsqueeze(0)
        return found

    hook = base.base_model.register_forward_hook(select)
    try:
        with autocast():
            found = model(**inputs, shift_labels=next_RC[wanted_RC].unsqueeze(0), fused_lm_head=True)
    finally:
        hook.remove()
    return _placed(found.log_probs, wanted_RC), None if found.entropy is None else _placed(found.entropy, wanted_RC)


def _placed(found_1W: Tensor, wanted_RC: Tensor) -> Tensor:
    """What was found of wanted tokens, in their places. It hangs on the model even where none is wanted."""
    return found_1W.new_zeros(wanted_RC.shape).masked_scatter(wanted_RC, found_1W)


def scored_completions(
    model: nn.Module,
    base: PreTrainedModel,
    ids: Tensor,
    attention_mask: Tensor,
    sampled_RT: Tensor,
    autocast: Autocast = nullcontext,
) -> tuple[Tensor, Tensor | None]:
    """Of the tokens (R,T) at the end of plain rows, those that the policy sampled."""
    completion = sampled_RT.size(1)
    next_RC = ids[:, 1:].clone()
    next_RC[:, :-completion] = NOT_SCORED
    next_RC[:, -completion:].masked_fill_(sampled_RT == 0, NOT_SCORED)
    logps, entropies = scored(
        model, base, next_RC, autocast, input_ids=ids[:, :-1], attention_mask=attention_mask[:, :-1]
    )
    return logps[:, -completion:], None if entropies is None else entropies[:, -completion:]
