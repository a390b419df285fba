"""a recipe and a sharding -> what its memory depends on: sizes of batches, sampler, types of weights."""

from dataclasses import dataclass

import torch
from peft import PeftConfig
from transformers import PreTrainedConfig
from trl import get_peft_config

from ..dropout import goes_without
from ..recipe.recipe import Recipe
from .policy import Training
from .sharding import Sharding


@dataclass(frozen=True)
class Setting:
    """What a recipe's memory depends on. Sizes are per device."""

    rows: int  # of a micro-batch
    micro_batches: int  # of an optimiser step
    generated: int  # rollouts of a batch
    evaluated: int  # rollouts of a batch of an evaluation; 0 if there is none
    sampler: str  # "transformers"; "colocate" or "server": vLLM
    gain_token_budget: int  # 0: no gain pass
    reference: str  # "none", "model" or "adapter"
    max_completion_length: int
    quantized_bits: int | None
    compute_bytes: int  # of a weight in the forward
    stored_bytes: int  # of a weight as it is kept, without DeepSpeed's master copy
    gathers_for_generation: bool = True
    sampled_at_once: int | None = None  # by transformers; None: all that reach a turn
    sampling_token_budget: int | None = None  # columns that are kept while rollouts are sampled; None: all of them
    vllm_share: float = 0.0  # of a device, for a colocated vLLM
    vllm_sleeps: bool = False
    vllm_devices: int = 1  # that hold its weights together


def setting_of(recipe: Recipe, config: PreTrainedConfig, sharding: Sharding) -> Setting:
    """Return the setting that follows from the recipe."""
    args = recipe.args
    sixteen = args.bf16 or args.fp16
    adapter = recipe.model.use_peft or recipe.adapter is not None
    stored = torch_dtype(recipe, config).itemsize
    if sharding.kind == "fsdp2" and sixteen:
        stored = 4  # Accelerate keeps the split weights in float32 and gathers them in 16 bits
    return Setting(
        rows=args.per_device_train_batch_size,
        micro_batches=args.gradient_accumulation_steps,
        generated=args.per_device_train_batch_size * args.steps_per_generation,
        evaluated=0 if recipe.test_dataset is None else args.per_device_eval_batch_size,
        sampler=args.vllm_mode if args.use_vllm else "transformers",
        gain_token_budget=args.gain_token_budget if args.uses_gain else 0,
        reference="none" if args.beta == 0 else "adapter" if adapter else "model",
        max_completion_length=args.max_completion_length,
        quantized_bits=4 if recipe.model.load_in_4bit else 8 if recipe.model.load_in_8bit else None,
        compute_bytes=2 if sixteen else stored,
        stored_bytes=2 if sharding.deepspeed and sixteen else stored,
        gathers_for_generation=args.ds3_gather_for_generation,
        sampled_at_once=args.sampling_batch_size,
        sampling_token_budget=args.sampling_token_budget if args.stream_turns and sharding.kind != "fsdp2" else None,
        vllm_share=args.vllm_gpu_memory_utilization,
        vllm_sleeps=args.vllm_enable_sleep_mode,
        vllm_devices=args.vllm_tensor_parallel_size,
    )


def torch_dtype(recipe: Recipe, config: PreTrainedConfig) -> torch.dtype:
    """Return the type in which the recipe loads its weights; "auto" is the config's."""
    named = recipe.model_init_kwargs["dtype"]
    if named == "auto":
        return config.dtype or torch.float32
    return getattr(torch, named) if isinstance(named, str) else named or torch.float32


def training_of(recipe: Recipe, config: PreTrainedConfig, sharding: Sharding, on_gpu: bool) -> Training:
    """Return how the policy is built to be traced.

    If weights are kept or gathered in 16 bits, the forward casts none; otherwise it casts each under autocast.
    """
    args = recipe.args
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    quantized = recipe.model.load_in_4bit or recipe.model.load_in_8bit
    casts = half is not None and not (sharding.deepspeed or sharding.kind == "fsdp2" or quantized)
    adapter: PeftConfig | None = get_peft_config(recipe.model)
    if recipe.adapter is not None:
        adapter = PeftConfig.from_pretrained(str(recipe.adapter))
        adapter.inference_mode = False  # it was saved as true, but the adapter is trained further
    return Training(
        dtype=torch_dtype(recipe, config) if half is None or casts else half,
        autocast=half if casts else None,
        adapter=adapter,
        checkpointing=args.gradient_checkpointing,
        disable_dropout=goes_without(args.importance_sampling_level, args.disable_dropout),
        clip_gradients=args.max_grad_norm is not None and args.max_grad_norm > 0,
        on_gpu=on_gpu,
        trust_remote_code=args.trust_remote_code,
    )
