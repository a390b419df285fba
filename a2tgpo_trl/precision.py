"""weights, mixed precision, device -> by how much a forward rounds."""

from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel


MIXED = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}  # fp8 adds up in bf16
EXACT = torch.finfo(torch.float32).eps / 2
TF32 = 2.0**-11
IN_8_BITS = 2.0**-8  # bitsandbytes rounds what a layer reads to 1 / 127 of its largest number


def rounding_unit(weights: torch.dtype, mixed_precision: str, device: torch.device) -> float:
    """By what fraction of itself a number is rounded at most when a forward multiplies.

    Example: bfloat16, as weights or by autocast, 2^-8; float16 and float32 cut to TF32 2^-11; float32 2^-24
    """
    dtype = MIXED.get(mixed_precision, weights)
    if dtype == torch.float32 and _cuts_float32(device):
        return TF32
    return torch.finfo(dtype).eps / 2


def training_unit(accelerator: Accelerator, model: PreTrainedModel) -> float:
    """The rounding unit of a model that is trained, or that samples with the same forward.

    The coarsest weights decide: a head, and embeddings that are tied to it, may be in float32, the layers in bfloat16.
    """
    dtypes = {weights.dtype for weights in model.parameters() if weights.is_floating_point()}
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=model.dtype)
    unit = rounding_unit(coarsest, accelerator.mixed_precision, accelerator.device)
    return max(unit, IN_8_BITS) if getattr(model, "is_loaded_in_8bit", False) else unit


def _cuts_float32(device: torch.device) -> bool:
    """Whether float32 matrices are multiplied less precisely (`tf32: true`, `torch.set_float32_matmul_precision`)."""
    backend: Any = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    return backend.matmul.fp32_precision not in ("none", "ieee")
