"""a computation on tensors without values -> the memory it holds; nothing is computed.

Tensors are fake: they have a shape and a type, but no values. The model's own code runs on them, so the count is that
of this architecture, with its autocast, adapters and gradient checkpointing, and not of a formula for another one.
Storages are followed below autograd, so those of a backward pass count too.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTrace(TorchDispatchMode):
    """Counts the bytes of storages made inside it. What is in memory before it starts is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._sizes: dict[int, int] = {}  # storage -> bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._follow(tensor.untyped_storage(), counted=False)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):  # views and in-place results bring no new storage
            self._follow(tensor.untyped_storage(), counted=True)
        return result

    def _follow(self, storage: torch.UntypedStorage, counted: bool) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if counted else 0
        self.held += self._sizes[key]
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._free, key)  # another may take its address

    def _free(self, key: int) -> None:
        self.held -= self._sizes.pop(key, 0)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def without_values(model: nn.Module) -> FakeTensorMode:
    """Give a meta-device model parameters and buffers without values, as on a CPU. Return the mode that it runs in."""
    mode = FakeTensorMode()
    made: dict[int, Tensor] = {}  # tied weights stay tied
    with mode:
        for module in model.modules():
            groups: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for group in groups:
                for name, tensor in group.items():
                    if tensor is not None:
                        group[name] = made.setdefault(id(tensor), _fake(tensor))
    return mode


def _fake(tensor: Tensor) -> Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
