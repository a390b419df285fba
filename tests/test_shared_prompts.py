"""Rows of which a forward reads equal prompts once: log-probabilities, entropies and gradients of plain rows."""

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from a2tgpo_trl.models import base_model
from a2tgpo_trl.shared_prompts import (
    SHARED_SDPA,
    group_size,
    obstacle_to_sharing,
    score_shared,
    shared_rows,
    sharing_attention,
    sharing_error,
    tokens_read,
)


SHARED = ("llama", "qwen2", "qwen3", "mistral", "mistral-sliding", "gemma3", "gpt-neox", "phi3")
COMPLETION = 9


def rows(completions: list[int], prompts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of rows with completions and prompts of these lengths; equal neighbours have the same prompt."""
    generator = torch.Generator().manual_seed(0)
    width = max(prompts)
    ids = torch.randint(3, 384, (len(prompts), width + COMPLETION), generator=generator)
    for i in range(1, len(prompts)):
        if prompts[i] == prompts[i - 1]:
            ids[i, :width] = ids[i - 1, :width]
    place = torch.arange(width + COMPLETION)
    first = torch.tensor([width - prompt for prompt in prompts]).unsqueeze(1)
    last = torch.tensor([width + completion for completion in completions]).unsqueeze(1)
    return ids, ((place >= first) & (place < last)).long()


def plain(model, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As TRL's trainer scores them."""
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-COMPLETION] = -100
    found = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return found.log_probs[:, -COMPLETION:], found.entropy[:, -COMPLETION:]


def shared(model, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    base = base_model(model)
    found = shared_rows(ids, mask, mask[:, -COMPLETION:], base.config.get_text_config())
    assert found is not None and found.ids.numel() < ids.numel()
    logps, entropy = score_shared(model, base, found)
    assert entropy is not None
    return logps, entropy


def gradients(
    model, score, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    with sharing_attention(base_model(model)):
        logps, entropy = score(model, ids, mask)
        weights = torch.linspace(-1, 1, logps.numel()).view_as(logps)
        (logps * weights * mask[:, -COMPLETION:]).sum().backward()
    return logps, entropy, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", SHARED)
def test_numbers_and_gradients_are_those_of_plain_rows(name, checkpointing, adapter):
    model = tiny.architectures()[name]()
    add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", "entropy"))
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    ids, mask = rows([9, 4, 1, 7, 9, 2], [11, 11, 11, 11, 6, 6])
    expected, found = (gradients(model, score, ids, mask) for score in (plain, shared))
    real = mask[:, -COMPLETION:].bool()
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one[real], other[real], atol=1e-5, rtol=1e-5)
        assert not one[~real].any()
    assert len(found[2]) == len(expected[2]) > 0
    for one, other in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_other_masks_get_plain_attention():
    model = tiny.architectures()["qwen3"]()
    ids, mask = rows([9, 4], [11, 6])
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        with sharing_attention(model):
            assert model.config._attn_implementation == SHARED_SDPA
            assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, expected)
    assert model.config._attn_implementation == "sdpa"


def test_where_no_neighbours_are_alike_there_is_nothing_to_share():
    config = tiny.architectures()["qwen3"]().config
    for completions, prompts in (([9, 4, 2], [5, 6, 7]), ([9, 4], [1, 1])):  # the one token of a prompt is copied
        ids, mask = rows(completions, prompts)
        assert shared_rows(ids, mask, mask[:, -COMPLETION:], config) is None


def test_as_many_rows_for_each_prompt_as_all_have():
    assert [group_size(text) for text in ("aaaa", "aaaabb", "aaabb", "abab")] == [4, 2, 1, 1]


def test_tokens_of_a_forward_are_counted_with_their_padding():
    of_rows = [("12345", 3), ("12345", 7), ("123", 2), ("123", 2)]
    assert tokens_read(of_rows, shares=False) == 4 * 4 + 4 * 7
    assert tokens_read(of_rows, shares=True) == 2 * 4 + 4 * 7
    ids, mask = rows([3, 7, 2, 2], [5, 5, 3, 3])
    found = shared_rows(ids, mask, mask[:, -COMPLETION:], tiny.architectures()["qwen3"]().config)
    assert found.ids.numel() == 2 * 4 + 4 * COMPLETION


@pytest.mark.parametrize("name", [name for name in tiny.architectures() if name not in SHARED])
def test_models_that_it_is_not_exact_for_are_named(name):
    assert obstacle_to_sharing(tiny.architectures()[name]()) is not None


@pytest.mark.parametrize("name", SHARED)
def test_the_trial_agrees_with_plain_rows(name):
    model = tiny.architectures()[name]()
    assert obstacle_to_sharing(model) is None
    add_fused_lm_head(model)
    assert sharing_error(model, model, model.device) < 1e-5


def test_the_trial_finds_a_model_that_ignores_positions():
    model = tiny.architectures()["llama"]()
    add_fused_lm_head(model)
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "position_ids": None}), with_kwargs=True
    )
    assert sharing_error(model, model, model.device) > 1e-2
