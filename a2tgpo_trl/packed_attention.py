"""One row = a rollout and all its probes. Which token sees which, for each attention implementation.

    [ rollout tokens | padding | probe at boundary 1 | probe at boundary 2 | ... | padding ]

Every token carries the number of its block (0 the rollout, 1.. the probes, -1 padding behind the probes) and how many
rollout tokens it sees. Token q sees token k iff k is not after q, and both are in one block or k is among the rollout
tokens that q sees. With explicit positions, a probe then computes what it would in a row of its own.

`sdpa` runs the rollout part by the causal kernel it would use without probes, bit for bit, and the probes by a mask
of (probe tokens x row): no (row x row) mask exists, and the fast kernel stays in use.

Shapes: R rows, T rollout tokens, P probe tokens.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward


SPLIT_SDPA = "a2tgpo_split_sdpa"
_FLASH = ("flash_attention", "kernels-community/flash-attn", "kernels-community/vllm-flash-attn")


def sees(block_RL: Tensor, seen_RL: Tensor, first_query: int = 0) -> Tensor:
    """The rule above as a mask (R, 1, L - first_query, L): True where a query may look at a key."""
    length = block_RL.size(1)
    index = torch.arange(length, device=block_RL.device)
    query_RQ1 = slice(None), slice(first_query, None), None
    same_block = block_RL[query_RQ1] == block_RL[:, None, :]
    in_context = index[None, None, :] < seen_RL[query_RQ1]
    not_after = index[None, None, :] <= index[None, first_query:, None]
    return (not_after & (same_block | in_context)).unsqueeze(1)


def attention_mask(implementation: str, block_RL: Tensor, seen_RL: Tensor, rollout_width: int, dtype: torch.dtype):
    """The mask in the form that the implementation takes."""
    if implementation == SPLIT_SDPA:
        return sees(block_RL, seen_RL, first_query=rollout_width)
    if implementation == "flex_attention":
        return _block_mask(block_RL, seen_RL)
    mask = sees(block_RL, seen_RL)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _block_mask(block_RL: Tensor, seen_RL: Tensor) -> BlockMask:
    def rule(row, head, query, key):
        return (key <= query) & ((block_RL[row, key] == block_RL[row, query]) | (key < seen_RL[row, query]))

    rows, length = block_RL.shape
    return create_block_mask(rule, B=rows, H=None, Q_LEN=length, KV_LEN=length, device=str(block_RL.device))


def _split_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs
) -> tuple[Tensor, None]:
    """Attention of rollout tokens among themselves, then of probe tokens over everything they may see."""
    width = query.size(2) - attention_mask.size(2)
    if width == 0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rollout, _ = sdpa_attention_forward(
        module, query[:, :, :width], key[:, :, :width], value[:, :, :width], None, **kwargs
    )
    probes, _ = sdpa_attention_forward(module, query[:, :, width:], key, value, attention_mask, **kwargs)
    return torch.cat([rollout, probes], dim=1), None


AttentionInterface.register(SPLIT_SDPA, _split_sdpa)


@contextmanager
def attention_implementation(config: PreTrainedConfig, implementation: str) -> Iterator[None]:
    """Run the model with another attention function for a while."""
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def packed_implementation(model: PreTrainedModel) -> tuple[str | None, str]:
    """The attention implementation that packs rows exactly for this model, or None; and why, in words for the log."""
    config = model.config.get_text_config()
    obstacle = _obstacle(model, config)
    if obstacle:
        return None, obstacle
    current = config._attn_implementation
    if current in ("eager", "flex_attention"):
        return current, f"the model's own {current} attention takes the mask of a packed row"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return None, f"its attention ({current}) caps logits, which only eager and flex_attention do on packed rows"
    if current == "sdpa":
        return SPLIT_SDPA, "sdpa, with the rollout in its own causal kernel"
    if current.startswith(_FLASH) and model._supports_sdpa:
        return SPLIT_SDPA, f"{current} takes no such mask, so the gain pass runs the same attention by sdpa"
    return None, f"attention implementation {current!r} is not known to take the mask of a packed row"


def positions_are_relative(model: PreTrainedModel) -> bool:
    """Whether only distances between tokens matter, so that padding on the left changes nothing.

    TRL's forward counts positions from the padding, a packed row from the first token. For rotary embeddings that is
    one and the same; for learned ones the log-probabilities of the two must not be mixed.
    """
    return bool(_rope_types(model.config.get_text_config()))


def _obstacle(model: PreTrainedModel, config: PreTrainedConfig) -> str | None:
    """What makes tokens depend on more than their positions and the tokens that they see."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds:
        return f"it has {' and '.join(sorted(kinds))} layers"
    if getattr(config, "sliding_window", None) is not None:
        return f"its attention slides over a window of {config.sliding_window} tokens"
    if getattr(config, "alibi", False):
        return "its attention biases depend on the place in the row (ALiBi)"
    if model._is_stateful:
        return "it carries a recurrent state from token to token"
    # `base_model` is the property of transformers; a PEFT model hides it behind an attribute of the same name.
    if "position_ids" not in inspect.signature(type(model.base_model).forward).parameters:
        return "its forward takes no position_ids"
    scaled = {"dynamic", "longrope"} & _rope_types(config)
    if scaled:
        return f"its rotary frequencies ({', '.join(sorted(scaled))}) depend on the length of the row"
    return None


def _rope_types(config: PreTrainedConfig) -> set[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return {entry["rope_type"] for entry in nested if "rope_type" in entry}
