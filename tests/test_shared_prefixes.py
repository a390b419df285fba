"""A forward that reads shared beginnings of rows once gives the numbers and gradients of plain rows."""

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import NemotronConfig, NemotronForCausalLM
from trl.trainer.utils import add_fused_lm_head

from a2tgpo_trl.models import base_model
from a2tgpo_trl.shared_prefixes import (
    SHARED_SDPA,
    BucketsLost,
    GatherTokens,
    obstacle_to_sharing,
    score_shared,
    shared_lengths,
    shared_rows,
    sharing_attention,
    sharing_error,
    tokens_read,
)


SHARED = ("llama", "qwen2", "qwen3", "mistral", "mistral-sliding", "gemma3", "gpt-neox", "phi3")
COMPLETION = 9


def rows(alike: dict[int, tuple[int, int]] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of six rows of two prompts. `alike`: row -> another, and how many completion tokens they share."""
    completions, prompts = [9, 4, 1, 7, 9, 2], [11, 11, 11, 11, 6, 6]
    width = max(prompts)
    ids = torch.randint(3, 384, (len(prompts), width + COMPLETION), generator=torch.Generator().manual_seed(0))
    for i in range(1, len(prompts)):
        if prompts[i] == prompts[i - 1]:
            ids[i, :width] = ids[i - 1, :width]
    for row, (other, number) in (alike or {}).items():
        ids[row, width : width + number] = ids[other, width : width + number]
    place = torch.arange(width + COMPLETION)
    first = torch.tensor([width - prompt for prompt in prompts]).unsqueeze(1)
    last = torch.tensor([width + completion for completion in completions]).unsqueeze(1)
    return ids, ((place >= first) & (place < last)).long()


# Prompts alone; a branch in a completion, and one after it; rows that are equal to their end, one of them shorter.
ALIKE = [{}, {3: (0, 4), 1: (0, 2)}, {3: (0, 7), 1: (0, 4), 5: (4, 2)}]


def sampled(mask: torch.Tensor) -> torch.Tensor:
    """Mask of all completion tokens except the first row's third and the second's first, as if tools wrote them."""
    of_rows = mask[:, -COMPLETION:].clone()
    of_rows[0, 2] = of_rows[1, 0] = 0
    return of_rows


def plain(model, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies as TRL's trainer computes them."""
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-COMPLETION] = -100
    found = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return found.log_probs[:, -COMPLETION:], found.entropy[:, -COMPLETION:]


def shared(model, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    base = base_model(model)
    found = shared_rows(ids, mask, sampled(mask), base.config.get_text_config())
    assert found is not None and found.ids_1N.numel() < mask.sum()
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
        (logps * weights * sampled(mask)).sum().backward()
    return logps, entropy, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("adapter", "checkpointing"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("alike", ALIKE, ids=["prompts", "branches", "same"])
@pytest.mark.parametrize("name", SHARED)
def test_shared_forward_equals_plain_rows_in_outputs_and_gradients(name, alike, adapter, checkpointing):
    model = tiny.architectures()[name]()
    add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", "entropy"))
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    ids, mask = rows(alike)
    expected, found = (gradients(model, score, ids, mask) for score in (plain, shared))
    real = sampled(mask).bool()
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one[real], other[real], atol=1e-5, rtol=1e-5)
        assert not one[~real].any()
    assert len(found[2]) == len(expected[2]) > 0
    for one, other in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_calls_with_ordinary_masks_get_plain_attention():
    model = tiny.architectures()["qwen3"]()
    ids, mask = rows()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        with sharing_attention(model):
            assert model.config._attn_implementation == SHARED_SDPA
            assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, expected)
    assert model.config._attn_implementation == "sdpa"


def test_tokens_read_counts_shared_prefixes_once():
    examples = [[list(map(ord, text)) for text in texts.split()] for texts in ("abcdef abcgh abcdei", "ab abc ab x")]
    assert list(shared_lengths(examples[0]).items()) == [(0, 0), (2, 4), (1, 2)]
    assert list(shared_lengths(examples[1]).items()) == [(0, 0), (2, 1), (1, 1), (3, 0)]
    assert list(map(tokens_read, examples)) == [5 + 1 + 2, 1 + 0 + 1 + 0]
    ids, mask = rows()
    found = shared_rows(ids, mask, sampled(mask), tiny.architectures()["qwen3"]().config)
    assert found.ids_1N.numel() == (11 - 1 + 9 + 4 + 1 + 7) + (6 - 1 + 9 + 2)
    assert (
        tokens_read([row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]) == found.ids_1N.numel()
    )


def test_rows_without_common_prefix_or_padding_are_read_plainly():
    ids = torch.arange(3, 63).view(3, 20)
    mask = torch.ones_like(ids)
    assert shared_rows(ids, mask, mask[:, -COMPLETION:], tiny.architectures()["qwen3"]().config) is None


def test_small_savings_single_rows_and_empty_rows_are_read_plainly():
    config = tiny.architectures()["qwen3"]().config
    ids = torch.arange(3, 63).view(3, 20)
    ids[1:, :4] = ids[0, :4]
    mask = torch.ones_like(ids)
    assert shared_rows(ids, mask, mask[:, -COMPLETION:], config) is None
    ids[1:, :12] = ids[0, :12]
    assert shared_rows(ids, mask, mask[:, -COMPLETION:], config) is not None
    mask[0, -2:] = 0
    assert shared_rows(ids[:1], mask[:1], mask[:1, -COMPLETION:], config) is None  # alone
    nothing = torch.zeros_like(mask)
    nothing[:, 5] = 1
    assert shared_rows(ids, nothing, nothing[:, -COMPLETION:], config) is None


def test_sharing_is_exact_with_adapted_embeddings():
    model = tiny.architectures()["qwen3"]()
    add_fused_lm_head(model)
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], init_lora_weights=False)
    )
    assert sharing_error(adapted, base_model(adapted), model.device) < 1e-5


def test_layers_that_do_not_pass_buckets_to_attention_are_detected():
    config = NemotronConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    model = NemotronForCausalLM(config)
    add_fused_lm_head(model)
    assert obstacle_to_sharing(model) is None
    with pytest.raises(BucketsLost):
        sharing_error(model, model, model.device)


def test_a_model_on_several_devices_is_read_row_by_row():
    model = tiny.architectures()["qwen3"]()
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    assert "several devices" in obstacle_to_sharing(model)


def test_token_masked_in_one_row_keeps_its_value_in_another():
    model = tiny.architectures()["qwen3"]()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids, mask = rows({3: (0, 7)})
    wanted = mask[:, -COMPLETION:].clone()
    wanted[0] = 0  # a rollout that is left out of the loss
    found = shared_rows(ids, mask, wanted, model.config)
    with torch.no_grad(), sharing_attention(model):
        logps, _ = score_shared(model, model, found)
        expected = plain(model, ids, mask)[0]
    assert not logps[0].any()
    torch.testing.assert_close(logps[3, :7], expected[3, :7], atol=1e-5, rtol=1e-5)


def test_gradients_of_a_token_in_many_rows_are_added_up_in_float32():
    states = torch.ones(1, 1, 4, dtype=torch.bfloat16, requires_grad=True)
    numbers = torch.zeros(300, 2, dtype=torch.long)
    GatherTokens.apply(states, numbers).sum().backward()
    assert states.grad.unique().tolist() == [600.0]  # bfloat16 counts by ones only up to 256


@pytest.mark.parametrize("name", [name for name in tiny.architectures() if name not in SHARED])
def test_unsupported_architectures_are_named(name):
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
