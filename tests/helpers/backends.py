"""Sharding on this machine's processors, for scripts that run under torchrun: "ddp", "zero2", "zero3" and "fsdp2"."""

import importlib

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch.distributed.tensor import DTensor
from transformers import Trainer


def shard_on_cpu() -> None:
    """Make Accelerate shard on CPUs, where it silently trains with DDP: it applies FSDP to accelerators only."""
    make = AcceleratorState.__init__

    def make_and_shard(self, *args, fsdp_plugin=None, **kwargs):
        make(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = make_and_shard


def deepspeed_on_cpu() -> None:
    """Make DeepSpeed run on CPUs: Accelerate drops it when told to use the CPU, and otherwise sees one process."""
    find = PartialState._prepare_backend

    def find_gloo(self, *args, **kwargs):
        backend, distributed_type = find(self, *args, **kwargs)
        return ("gloo", DistributedType.MULTI_CPU) if backend is None else (backend, distributed_type)

    PartialState._prepare_backend = find_gloo
    # Otherwise the first run compiles an inference operation for a minute.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None


def backend_settings(backend: str) -> dict:
    """What a user would set in the trainer's config, and what this machine needs in addition."""
    if backend == "ddp":
        return {"use_cpu": True}
    if backend == "fsdp2":
        shard_on_cpu()
        wrap = {"version": 2, "reshard_after_forward": True, "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"]}
        return {"use_cpu": True, "fsdp": True, "fsdp_config": wrap}
    deepspeed_on_cpu()
    zero: dict = {"stage": int(backend.removeprefix("zero"))}
    if backend == "zero3":
        zero["stage3_param_persistence_threshold"] = 0  # otherwise a tiny model is kept whole
    return {
        "deepspeed": {
            "zero_optimization": zero,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        },
    }


def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().clone()


def held(parameter: torch.nn.Parameter) -> int:
    """How many numbers of a parameter this rank keeps between forwards."""
    if hasattr(parameter, "ds_id"):
        return parameter.numel() + parameter.ds_tensor.numel()
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()


def zero_stage(trainer: Trainer) -> int:
    """The ZeRO stage; 0 without DeepSpeed."""
    if not trainer.is_deepspeed_enabled:
        return 0
    return trainer.accelerator.deepspeed_config["zero_optimization"]["stage"]
