"""One row = a rollout and all its probes. Which token sees which, for each attention implementation.

    [ rollout tokens | padding | probe at boundary 1 | probe at boundary 2 | ... | padding ]

Every token carries the number of its block (0 the rollout, 1.. the probes, -1 padding behind the probes) and how many
rollout tokens it sees. Token q sees token k iff k is not after q, and both are in one block or k is among the rollout
tokens that q sees. With explicit positions, a probe then computes what it would in a separate row.

`sdpa` computes the rollout part with the causal kernel that it would use without probes, bit for bit, and the probes
with a mask of (probe tokens x row). There is no (row x row) mask, and the fast kernel stays in use. Layers with a
sliding window take the mask of the whole row, as they do without probes.

Shapes: R rows, T rollout tokens, P probe tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..models import SLIDING, layer_kinds, obstacle_to_layouts


SPLIT_SDPA = "a2tgpo_split_sdpa"
Mask = Tensor | BlockMask
_FLASH = ("flash_attention", "kernels-community/flash-attn", "kernels-community/vllm-flash-attn")


@dataclass(frozen=True)
class Layout:
    """What the rule needs to know of each token of packed rows, each (R,L)."""

    block: Tensor
    seen: Tensor
    position: Tensor
    rollout_width: int  # columns before the probes


def sees(layout: Layout, window: int | None = None, first_query: int = 0) -> Tensor:
    """Return the rule above as a mask (R, 1, L - first_query, L): True where a query sees a key.

    In a sliding layer a key must also be less than `window` positions back.
    """
    index = torch.arange(layout.block.size(1), device=layout.block.device)
    query_RQ1 = slice(None), slice(first_query, None), None
    same_block = layout.block[query_RQ1] == layout.block[:, None, :]
    in_context = index[None, None, :] < layout.seen[query_RQ1]
    not_after = index[None, None, :] <= index[None, first_query:, None]
    mask = not_after & (same_block | in_context)
    if window is not None:
        mask &= layout.position[query_RQ1] - layout.position[:, None, :] < window
    return mask.unsqueeze(1)


def attention_mask(config: PreTrainedConfig, layout: Layout, dtype: torch.dtype) -> Mask | dict[str, Mask]:
    """Return the mask in the form that the model's attention takes; one for each kind of layer if there are two."""
    masks = {
        kind: _layer_mask(
            config._attn_implementation, layout, config.sliding_window if kind == SLIDING else None, dtype
        )
        for kind in layer_kinds(config)
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _layer_mask(implementation: str, layout: Layout, window: int | None, dtype: torch.dtype) -> Mask:
    if implementation == "flex_attention":
        return _block_mask(layout, window)
    if implementation == SPLIT_SDPA:
        # The causal kernel has no window, so sliding layers take the mask of the whole row.
        return sees(layout, window, first_query=layout.rollout_width if window is None else 0)
    mask = sees(layout, window)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _block_mask(layout: Layout, window: int | None) -> BlockMask:
    block_RL, seen_RL, position_RL = layout.block, layout.seen, layout.position

    def rule(row, head, query, key):
        allowed = (key <= query) & ((block_RL[row, key] == block_RL[row, query]) | (key < seen_RL[row, query]))
        return allowed if window is None else allowed & (position_RL[row, query] - position_RL[row, key] < window)

    rows, length = block_RL.shape
    return create_block_mask(rule, B=rows, H=None, Q_LEN=length, KV_LEN=length, device=str(block_RL.device))


def _split_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs
) -> tuple[Tensor, None]:
    """Compute attention of rollout tokens among themselves, then of probe tokens over all that they see."""
    width = query.size(2) - attention_mask.size(2)
    if width == 0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rollout, _ = sdpa_attention_forward(
        module, query[:, :, :width], key[:, :, :width], value[:, :, :width], None, **kwargs
    )
    probes, _ = sdpa_attention_forward(module, query[:, :, width:], key, value, attention_mask, **kwargs)
    return torch.cat([rollout, probes], dim=1), None


AttentionInterface.register(SPLIT_SDPA, _split_sdpa)


def packed_implementation(model: PreTrainedModel) -> tuple[str | None, str]:
    """Return the attention implementation that packs rows exactly for this model, or None, and why, for the log."""
    config = model.config.get_text_config()
    obstacle = obstacle_to_layouts(model)
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
