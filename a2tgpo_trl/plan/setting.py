"""a recipe and a sharding -> what a plan asks of them: sizes of batches, engine, types, which passes there are."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from transformers import PreTrainedConfig
from trl import get_peft_config

from ..dropout import goes_without
from ..information_gain.rounding import spread_out
from ..recipe.recipe import Recipe
from .policy import Training
from .sharding import Sharding


@dataclass(frozen=True)
class Engine:
    """What samples. `kind`: transformers, colocate or server (both vLLM)."""

    kind: str = "transformers"
    memory_share: float = 0.0  # of a device, for a colocated vLLM
    sleeps: bool = False
    tensor_parallel: int = 1
    gpus: int = 1  # of a server
    streams: bool = False


@dataclass(frozen=True)
class Setting:
    """Sizes per device. A generation batch serves `1 / generations` optimiser steps."""

    rows: int  # of a micro-batch
    micro_batches: int  # of an optimiser step
    generated: int  # rollouts of a batch
    evaluated: int  # rollouts of a batch of an evaluation; 0 where there is none
    generations: float  # generation batches per optimiser step
    engine: Engine
    gain: bool
    gain_token_budget: int
    old_logps: bool
    shares_logps: bool  # the gain pass gives the old log-probabilities, if it packs
    reference: str  # "none", "model" or "adapter"
    max_completion_length: int
    tool_concurrency: int
    quantized_bits: int | None
    gathers_for_generation: bool
    compute_bytes: int  # of a weight in the forward
    stored_bytes: int  # of a weight as it is kept, without DeepSpeed's master copy
    scored_twice: int = 0  # rollouts of a batch, by a gain pass that sees what rounding does
    sampled_at_once: int | None = None  # by transformers; None: all that reach a turn


def setting_of(recipe: Recipe, config: PreTrainedConfig, sharding: Sharding, server_gpus: int) -> Setting:
    """What the recipe's own settings come to."""
    args = recipe.args
    every = args.steps_per_generation * args.num_iterations
    corrected = args.use_vllm and args.vllm_importance_sampling_correction
    aligned = args.gradient_accumulation_steps % every == 0
    sixteen = args.bf16 or args.fp16
    adapter = recipe.model.use_peft or recipe.adapter is not None
    stored = torch_dtype(recipe, config).itemsize
    if sharding.kind == "fsdp2" and sixteen:
        stored = 4  # Accelerate keeps the split weights in float32 and gathers them in 16 bits
    compute = 2 if sixteen else stored
    exact = compute >= 4 and not args.tf32
    generated = args.per_device_train_batch_size * args.steps_per_generation
    return Setting(
        rows=args.per_device_train_batch_size,
        micro_batches=args.gradient_accumulation_steps,
        generated=generated,
        evaluated=0 if recipe.test_dataset is None else args.per_device_eval_batch_size,
        generations=args.gradient_accumulation_steps / every,
        engine=_engine(args, server_gpus),
        gain=args.uses_gain,
        gain_token_budget=args.gain_token_budget,
        old_logps=not aligned or corrected,
        shares_logps=exact,
        scored_twice=0 if exact else len(spread_out(generated, sharding.devices)),
        reference="none" if args.beta == 0 else "adapter" if adapter else "model",
        max_completion_length=args.max_completion_length,
        tool_concurrency=args.tool_concurrency,
        quantized_bits=4 if recipe.model.load_in_4bit else 8 if recipe.model.load_in_8bit else None,
        gathers_for_generation=args.ds3_gather_for_generation,
        compute_bytes=compute,
        stored_bytes=2 if sharding.deepspeed and sixteen else stored,
        sampled_at_once=args.sampling_batch_size,
    )


def _engine(args: Any, server_gpus: int) -> Engine:
    if not args.use_vllm:
        return Engine()
    if args.vllm_mode == "server":
        return Engine("server", gpus=server_gpus)
    return Engine(
        "colocate",
        memory_share=args.vllm_gpu_memory_utilization,
        sleeps=args.vllm_enable_sleep_mode,
        tensor_parallel=args.vllm_tensor_parallel_size,
        streams=args.stream_turns and args.vllm_tensor_parallel_size == 1,
    )


def torch_dtype(recipe: Recipe, config: PreTrainedConfig) -> torch.dtype:
    """The type in which the recipe loads its weights; "auto" is the config's."""
    named = recipe.model_init_kwargs["dtype"]
    if named == "auto":
        return config.dtype or torch.float32
    return getattr(torch, named) if isinstance(named, str) else named or torch.float32


def training_of(recipe: Recipe, config: PreTrainedConfig, sharding: Sharding, accelerated: bool) -> Training:
    """How the policy is built to be traced.

    Where weights are kept or gathered in 16 bits, the forward casts none; otherwise it casts each under autocast.
    """
    args = recipe.args
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    quantized = recipe.model.load_in_4bit or recipe.model.load_in_8bit
    casts = half is not None and not (sharding.deepspeed or sharding.kind == "fsdp2" or quantized)
    return Training(
        dtype=torch_dtype(recipe, config) if half is None or casts else half,
        autocast=half if casts else None,
        adapter=PeftConfig.from_pretrained(str(recipe.adapter)) if recipe.adapter else get_peft_config(recipe.model),
        checkpointing=args.gradient_checkpointing,
        disable_dropout=goes_without(args.importance_sampling_level, args.disable_dropout),
        clip_gradients=args.max_grad_norm is not None and args.max_grad_norm > 0,
        attention="sdpa",
        accelerated=accelerated,
        trust_remote_code=args.trust_remote_code,
    )
