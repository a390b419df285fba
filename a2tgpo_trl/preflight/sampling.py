"""a few sampled tokens -> whether sampler and trainer give them the same log-probabilities."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
)
from trl.trainer.utils import add_fused_lm_head

from ..config import A2TGPOConfig
from ..dropout import goes_without, switch_off_dropout
from ..rollout.sampler_gap import incomparable_settings, named
from .chat import Chat, Datasets, Verdict
from .data import ROWS_TOKENIZED, first_row


SAMPLED_TOKENS = 16
# Sampler and trainer run the same weights over the same tokens. A wrong position or mask moves log-probabilities by
# tenths or more. In bfloat16 rounding alone moves single ones by 0.01 to 0.2 (random Qwen3 weights, 12 layers).
LOGP_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
LOGP_TOLERANCE_16_BIT = 0.3


def uses_other_engine(args: A2TGPOConfig) -> bool:
    """Whether rollouts are sampled by something other than `model.generate`."""
    return args.use_vllm or args.use_transformers_continuous_batching


def check_truncation(args: A2TGPOConfig) -> Verdict:
    """Return what can be said about the sampler's log-probabilities without starting its engine."""
    engine = "vLLM" if args.use_vllm else "continuous batching"
    message = f"not tried: {engine} is not started here. Watch sampling/sampling_logp_difference in the first steps."
    return "warn", " ".join([message, *truncation(args)])


def check_clip_range(args: A2TGPOConfig) -> Verdict:
    """Check whether ratios move: otherwise clip ranges have no effect."""
    if (idle := args.idle_clip_range) is not None:
        return "warn", idle
    if args.is_on_policy:
        return "pass", "no effect: each batch is trained on in one update, so all ratios are 1"
    return "pass", "in effect: each batch is trained on in several updates"


def sampling(args: A2TGPOConfig) -> dict[str, Any]:
    """Return `GRPOTrainer`'s sampling settings, under the names of `model.generate`."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")
    return {**{name: getattr(args, name) for name in names}, **(args.generation_kwargs or {})}


def truncation(args: A2TGPOConfig) -> list[str]:
    """Return a sentence on settings, if any, that make sampling differ from the model's own probabilities."""
    changed = incomparable_settings(args)
    if not changed:
        return []
    return [
        f"Sampling is changed by {named(changed)}, and the trainer's log-probabilities are not: tokens are drawn "
        "with different probabilities than they are trained with. Leave these settings at their defaults."
    ]


def check_logps(model: PreTrainedModel, chat: Chat, args: A2TGPOConfig, data: Datasets) -> Verdict:
    """Check that sampled tokens have the same log-probability in sampling and in training's forward."""
    rows = islice(next(iter(data.values()), [first_row(data)]), ROWS_TOKENIZED)
    prompts = sorted(chat.prompt_ids([row["prompt"] for row in rows]), key=len)
    longer = next((ids for ids in prompts if len(ids) > len(prompts[0])), prompts[0])
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.dtype
    with torch.autocast(model.device.type, dtype=dtype, enabled=args.bf16 or args.fp16), torch.no_grad():
        error = logp_difference(model, [prompts[0], longer], chat.tokenizer.pad_token_id, chat.end_ids, args)
    tolerance = LOGP_TOLERANCE.get(dtype, LOGP_TOLERANCE_16_BIT)
    seen = f"sampler and trainer differ by at most {error:.1g} ({str(dtype).removeprefix('torch.')})"
    if not error <= tolerance:  # also NaN
        return "fail", (
            f"{seen}, more than the {tolerance} that rounding explains: ratios would be off before the first update. "
            "Use the same temperature in both (no temperature in generation_kwargs), a model without dropout "
            "(disable_dropout: true, or zeros in its config), and an architecture whose positions do not count the "
            "padding on the left; another attn_implementation may help."
        )
    changed = truncation(args)
    return ("warn", f"{seen}. {changed[0]}") if changed else ("pass", f"{seen}; up to {tolerance} is rounding")


def logp_difference(
    model: PreTrainedModel, prompts: list[list[int]], pad_id: int, end_ids: Sequence[int], args: A2TGPOConfig
) -> float:
    """Sample tokens after left-padded prompts; return the largest difference from the trainer's forward over them."""
    if goes_without(args.importance_sampling_level, args.disable_dropout):
        switch_off_dropout(model)
    settings = sampling(args)
    width = max(map(len, prompts)) + 1  # both rows are padded
    prompt_ids = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    prompt_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    generation = GenerationConfig(
        **{**settings, "max_new_tokens": SAMPLED_TOKENS},
        do_sample=True,
        pad_token_id=pad_id,
        eos_token_id=list(end_ids),
        disable_compile=True,
        return_dict_in_generate=True,
        output_logits=True,
    )
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(args.seed)
        sampled = model.eval().generate(
            input_ids=prompt_ids,
            attention_mask=prompt_mask,
            generation_config=generation,
        )
    completion_ids = sampled.sequences[:, width:]
    mask = _until_end(completion_ids, end_ids)
    logits = torch.stack(sampled.logits, dim=1).float() / settings["temperature"]
    sampler_logps = logits.log_softmax(-1).gather(2, completion_ids[..., None]).squeeze(2)
    ids, attention_mask = sampled.sequences, torch.cat([prompt_mask, mask], dim=1)
    trainer_logps = _trainer_logps(model, ids, attention_mask, completion_ids.size(1), args)
    return (sampler_logps - trainer_logps)[mask.bool()].abs().max().item()


def _until_end(completion_ids: Tensor, end_ids: Sequence[int]) -> Tensor:
    is_end = torch.isin(completion_ids, torch.tensor(list(end_ids), device=completion_ids.device)).int()
    return (is_end.cumsum(1) - is_end == 0).int()  # including the first end token


def _trainer_logps(
    model: PreTrainedModel, ids: Tensor, attention_mask: Tensor, completion_length: int, args: A2TGPOConfig
) -> Tensor:
    """Score as `GRPOTrainer._get_per_token_logps_and_entropies` does: fused head, training mode, no positions."""
    add_fused_lm_head(model, temperature=args.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32)
    labels = ids.masked_fill(attention_mask == 0, -100)
    labels[:, :-completion_length] = -100
    output = model.train()(input_ids=ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True)
    return output.log_probs[:, -completion_length:]
