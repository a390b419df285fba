"""vLLM's build for CPUs, made to take the current weights, as its builds for GPUs do."""

import torch


def keep_weights() -> None:
    """Call it before vLLM loads a model.

    On processors with AVX-512, vLLM 0.31 packs each linear layer for its own kernels and drops the weights that it was
    loaded with, so that weights sent later by training have no place to go.
    """
    from vllm.model_executor.layers import utils

    def multiply_as_torch_does(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = multiply_as_torch_does
