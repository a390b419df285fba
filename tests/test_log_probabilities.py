"""Log-probabilities, entropies and gradients of sampled tokens equal those of a head over all tokens."""

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from a2tgpo_trl.dropout import switch_off_dropout
from a2tgpo_trl.log_probabilities import NOT_SCORED, scored_completions
from a2tgpo_trl.models import base_model


COMPLETION = 12


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and sampled tokens, with padding on both sides and two tool results in the first row."""
    ids = torch.randint(3, 384, (3, 8 + COMPLETION), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = mask[1, -4:] = mask[2, -9:] = 0
    sampled = mask[:, -COMPLETION:].clone()
    sampled[0, 2:5] = sampled[0, 7:11] = sampled[1, 3] = 0
    return ids, mask, sampled


def over_all(model, ids: Tensor, mask: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies as TRL's trainer computes them."""
    labels = ids.masked_fill(mask == 0, NOT_SCORED)
    labels[:, :-COMPLETION] = NOT_SCORED
    found = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return found.log_probs[:, -COMPLETION:], found.entropy[:, -COMPLETION:]


def over_sampled(model, ids: Tensor, mask: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
    return scored_completions(model, base_model(model), ids, mask, sampled)


def outcome(model, score, sampled: Tensor) -> list[Tensor]:
    """Log-probabilities and entropies of sampled tokens, and the gradients of a weighted sum."""
    model.zero_grad()
    ids, mask, _ = rows()
    logps, entropies = score(model, ids, mask, sampled)
    weights = torch.linspace(-1, 1, logps.numel()).view_as(logps)
    (logps * weights * sampled).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [logps[sampled.bool()], entropies[sampled.bool()], *gradients]


@pytest.mark.parametrize(
    ("name", "adapter"), [*((name, False) for name in sorted(tiny.architectures())), ("qwen3", True), ("gemma3", True)]
)
def test_sampled_token_forward_equals_the_full_head_in_outputs_and_gradients(name, adapter):
    model = tiny.architectures()[name]()
    add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", "entropy"))
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    switch_off_dropout(model)
    _, _, sampled = rows()
    expected, found = (outcome(model, score, sampled) for score in (over_all, over_sampled))
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_head_computes_only_sampled_tokens_and_zeroes_the_rest():
    model = tiny.architectures()["qwen3"]()
    add_fused_lm_head(model)
    ids, mask, sampled = rows()
    given = []
    model.base_model.register_forward_hook(lambda *call: given.append(call[-1].last_hidden_state.shape))
    logps, entropies = over_sampled(model, ids, mask, sampled)
    assert entropies is None
    assert not logps[sampled == 0].any() and (logps[sampled == 1] < 0).all()
    with torch.no_grad():
        scores = model(input_ids=ids).logits  # an ordinary forward
    assert scores.shape[:2] == ids.shape
    assert given[0][:2] == ids.shape  # before the cut, because this hook was registered first


def test_rows_without_a_sampled_token_have_a_gradient_of_zero():
    model = tiny.architectures()["qwen3"]()
    add_fused_lm_head(model)
    _, _, sampled = rows()
    logps, _ = over_sampled(model, *rows()[:2], torch.zeros_like(sampled))
    logps.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
