"""Tests that need an accelerator: gains in 16 bits, limits on memory, a step of half a billion weights.

Skipped without a GPU. `A2TGPO_GPU_TESTS=cpu pytest -m gpu` runs the same code in small sizes on a CPU, which shows
that it runs, and nothing about GPUs.
"""

import math
import os
from dataclasses import dataclass

import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen3Config
from trl.trainer.utils import add_fused_lm_head

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.cli.bench_gain import Shape, make_rollouts
from a2tgpo_trl.information_gain.packed_attention import SPLIT_SDPA, packed_implementation
from a2tgpo_trl.information_gain.values import fused_scorer, score_turns


ON_CPU = os.environ.get("A2TGPO_GPU_TESTS") == "cpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (ON_CPU or torch.cuda.is_available()), reason="there is no GPU"),
]


@dataclass(frozen=True)
class Sizes:
    """Everything that differs between a GPU and a CPU in these tests."""

    device: str
    hidden: int
    layers: int
    vocabulary: int
    agreement: Shape  # of the rollouts whose values are compared
    budget: int  # tokens of a forward
    long: Shape  # of the rollouts that together exceed the budget several times
    policy: dict[str, int]  # of the model that is trained


SIZES = {
    "cuda": Sizes(
        device="cuda",
        hidden=1024,
        layers=8,
        vocabulary=32_000,
        agreement=Shape(rollouts=4, tokens=2048, prompt_tokens=256, turns=4, probe_tokens=12),
        budget=16_384,
        long=Shape(rollouts=4, tokens=15_000, prompt_tokens=1000, turns=8, probe_tokens=16),
        # Qwen2.5-0.5B: 0.49 G parameters
        policy={"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
        | {"num_key_value_heads": 2, "vocab_size": 151_936},
    ),
    "cpu": Sizes(
        device="cpu",
        hidden=64,
        layers=2,
        vocabulary=384,
        agreement=Shape(rollouts=2, tokens=96, prompt_tokens=16, turns=3, probe_tokens=6),
        budget=512,
        long=Shape(rollouts=16, tokens=120, prompt_tokens=16, turns=3, probe_tokens=4),
        policy={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "vocab_size": 384},
    ),
}
HERE = SIZES["cpu" if ON_CPU else "cuda"]


def make_model(attention: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model of random weights, equal in each precision and spread widely enough that each token seen matters."""
    config = Qwen3Config(
        hidden_size=HERE.hidden,
        intermediate_size=3 * HERE.hidden,
        num_hidden_layers=HERE.layers,
        num_attention_heads=HERE.hidden // 32,
        num_key_value_heads=HERE.hidden // 64,
        head_dim=32,
        vocab_size=HERE.vocabulary,
        initializer_range=1.5 / math.sqrt(HERE.hidden),
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    model = model.to(torch.bfloat16).to(dtype).to(HERE.device).eval()
    add_fused_lm_head(model)
    return model


def values(model: PreTrainedModel, implementation: str | None, shape: Shape, budget: int = 2**20) -> Tensor:
    rollouts, probes = make_rollouts(shape, HERE.vocabulary, seed=1)
    scored = score_turns(
        model, rollouts, probes, fused_scorer(model), implementation=implementation, token_budget=budget
    )
    assert scored.failed_probes == 0
    return scored.values_BK.float().cpu()


# ---- agreement in 16 bits

# A mean log-probability carries noise of a few hundredths; a wrong mask or position moves it by far more.
NOISE_16_BIT = 0.2


@pytest.mark.parametrize(("attention", "packed"), [("sdpa", SPLIT_SDPA), ("flex_attention", "flex_attention")])
def test_packed_values_in_16_bits_are_as_near_the_truth_as_separate_passes(attention, packed):
    # The truth: float32, one row per context, the same weights. bfloat16 keeps 8 bits, so each logit carries noise,
    # and a mean over the answer's tokens keeps part of it; summing in another order gives other noise of equal size.
    # So packed rows may be as far from the truth as separate ones, twice at most; the largest of B * K differences of
    # one distribution varies by less. One visible token too many or too few moves values as much as turns do.
    truth = values(make_model("sdpa", torch.float32), None, HERE.agreement)
    model = make_model(attention, torch.bfloat16)
    assert packed_implementation(model)[0] == packed
    separate, together = (values(model, how, HERE.agreement) for how in (None, packed))
    noise = (separate - truth).abs().max().item()
    assert 0 < noise < NOISE_16_BIT
    assert (together - truth).abs().max().item() < 2 * noise
    assert (together - separate).abs().max().item() < NOISE_16_BIT
    assert truth.diff(dim=1).abs().median().item() > 2 * noise  # turns differ by more than noise


# ---- memory


def widths(model: PreTrainedModel) -> list[int]:
    """A list to which each later forward adds its number of tokens, padding included."""
    found: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: found.append(kwargs.get("input_ids", args[0] if args else None).numel()),
        with_kwargs=True,
    )
    return found


def test_gain_pass_stays_within_its_token_budget_and_memory():
    # Besides the weights, a forward without gradients holds, at 2 bytes a number and at the same time: hidden states,
    # their norms, the inputs and outputs of attention (8 of `hidden`), and the products of the MLP (9 of `hidden`):
    # 17 * 1,024 * 16,384 numbers, 0.57 GB. Twice that is allowed, for copies in float32; and 1 GiB for logits, which
    # come in tiles (0.3 GB), and for the probes' mask, 144 * 15,144 numbers for each of 32 heads (0.14 GB): 2.2 GB in
    # all. Not allowed: a mask of 15,144 * 15,144 numbers for each head, 15 GB, or all rollouts in one forward.
    model = make_model("sdpa", torch.bfloat16)
    total = HERE.long.rollouts * HERE.long.tokens
    assert total > 2 * HERE.budget
    forwards = widths(model)
    peak = peak_bytes(lambda: values(model, SPLIT_SDPA, HERE.long, HERE.budget))
    assert len(forwards) > 2 and max(forwards) <= HERE.budget
    if HERE.device == "cuda":
        allowed = 2 * 17 * HERE.hidden * HERE.budget * 2 + 2**30
        assert peak < allowed, f"{peak / 2**30:.2f} GiB, of {allowed / 2**30:.2f}"


def peak_bytes(run) -> int:
    """The peak memory that a call takes on top of what was in use before; 0 on a CPU, which does not report it."""
    if HERE.device != "cuda":
        run()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# ---- a step


def rollout(prompts: list, trainer: A2TGPOTrainer) -> dict:
    """Rollouts of a tool turn and an answer, each a little longer than the previous one."""
    masks = [[1] * 24 + [0] * (16 + 4 * i) + [1] * 24 for i in range(len(prompts))]
    return {
        "prompt_ids": [[5, 6, 7, 8]] * len(prompts),
        "completion_ids": [[(13 * i + 7 * j) % 300 for j in range(len(mask))] for i, mask in enumerate(masks)],
        "logprobs": [[-1.0] * len(mask) for mask in masks],
        "env_mask": masks,
        "number": list(range(len(prompts))),
    }


@pytest.mark.parametrize("sampled", [False, True], ids=["given", "sampled"])
def test_a_step_with_lora_moves_the_adapter_and_nothing_else(sampled, tmp_path):
    tokenizer = tiny.make_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(**HERE.policy, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    args = A2TGPOConfig(
        str(tmp_path),
        use_cpu=HERE.device == "cpu",
        bf16=True,
        per_device_train_batch_size=4,
        num_generations=4,
        max_steps=1,
        max_completion_length=32,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = A2TGPOTrainer(
        model,
        lambda completion_ids, **_: [float(sum(ids) % 5 + i) for i, ids in enumerate(completion_ids)],
        args,
        Dataset.from_dict({"prompt": ["one", "two"], "answer": ["Paris", "Rome"]}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        rollout_func=None if sampled else rollout,
    )
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    peak = peak_bytes(trainer.train)
    assert trainer.accelerator.device.type == HERE.device and trainer.accelerator.mixed_precision == "bf16"
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved and all("lora_" in name for name in moved)
    (step,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert math.isfinite(step["loss"]) and step["grad_norm"] > 0
    if not sampled:
        assert math.isfinite(step["gain/mean"]) and step["turns/mean"] == 2.0
    if HERE.device == "cuda":
        # Adapters 8.8 M * 16 bytes = 0.14 GB; logits of 4 * 100 tokens, in float32 and with their gradient, 0.5 GB;
        # activations of one layer at a time 0.1 GB; kernels' workspaces 0.1 GB.
        assert peak < 1.5 * 2**30, f"{peak / 2**30:.2f} GiB"
