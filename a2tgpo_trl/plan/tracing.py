"""a model without weights, a computation -> the operations it runs and the memory they hold, nothing computed.

Tensors are fake: they have a shape and a type, and no values. The model's own code runs on them, so that what is
counted is what this architecture does, with its autocast, adapters and gradient checkpointing, and not what a formula
for another one says. Operations are counted below autograd: those of a backward pass too.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from trl.kernels import chunked_logprob


# "step": attention of one token to what is in the cache
Kind = Literal["matmul", "attention", "step", "memory", "view"]
PAGE = 4096
FEW = 8  # times as many keys as queries
_ATTENTION = "scaled_dot_product"
# Allocates, and touches nothing.
_RESERVES = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty, torch.ops.aten.empty_strided}
_GONE = "prim"  # questions about a tensor, which no device sees


class Op(NamedTuple):
    """One operation: what it computes and what it reads and writes."""

    kind: Kind
    flops: int
    bytes: int
    backward: bool


@dataclass(frozen=True)
class Work:
    """Operations with their numbers, and the most memory that they held at once beyond what was there before."""

    ops: Counter[Op] = field(default_factory=Counter)
    peak_bytes: int = 0
    kept_bytes: int = 0  # still held at the end

    @property
    def flops(self) -> int:
        return sum(op.flops * number for op, number in self.ops.items())

    @property
    def bytes(self) -> int:
        return sum(op.bytes * number for op, number in self.ops.items())

    @property
    def number(self) -> int:
        return sum(self.ops.values())


class Tracer(TorchDispatchMode):
    """Counts what runs inside it. What is in memory before it starts is not counted.

    `resident`: memory that was allocated and never written to does not count, as on CPUs.
    """

    def __init__(self, resident: bool = False):
        super().__init__()
        self._resident = resident
        self._ops: Counter[Op] = Counter()
        self._sizes: dict[int, int] = {}  # storage -> bytes that it counts
        self._reserved: set[int] = set()
        self._live = self._peak = 0

    @property
    def work(self) -> Work:
        return Work(self._ops, self._peak, self._live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == _GONE:
            return func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in inputs:
            self._know(tensor.untyped_storage(), 0)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._count(func, args, kwargs, inputs, outputs, result)
        for tensor in outputs:
            self._hold(tensor, func.is_view or func.overloadpacket in _RESERVES)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, inputs: list, outputs: list, result: Any) -> None:
        packet = func.overloadpacket
        backward = torch._C._current_autograd_node() is not None
        flops = _flops(packet, args, kwargs, result)
        size = 0
        kind: Kind = "view" if func.is_view or packet in _RESERVES else "memory"
        if kind == "memory":
            size = sum(tensor.numel() * tensor.itemsize for tensor in (*inputs, *outputs))
        if flops and _ATTENTION in str(packet):
            few = FEW * args[0].size(-2) <= args[1].size(-2)  # more than one where heads share a cache
            kind = "step" if few and not backward else "attention"
        elif flops:
            kind = "matmul"
        self._ops[Op(kind, flops, size, backward)] += 1

    def _hold(self, tensor: Tensor, reserved: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        lazily = self._resident and reserved
        if self._know(storage, 0 if lazily else storage.nbytes()):
            if lazily:
                self._reserved.add(key)
        elif key in self._reserved and not reserved:
            grown = max(touched_bytes(tensor), self._sizes[key])
            self._grow(grown - self._sizes[key])
            self._sizes[key] = grown

    def _know(self, storage: torch.UntypedStorage, size: int) -> bool:
        """Count a storage until it is freed; whether it was new. Another may take its address after that."""
        key = storage._cdata
        if key in self._sizes:
            return False
        self._sizes[key] = size
        self._grow(size)
        weakref.finalize(storage, self._free, key)
        return True

    def _grow(self, size: int) -> None:
        self._live += size
        self._peak = max(self._peak, self._live)

    def _free(self, key: int) -> None:
        self._live -= self._sizes.pop(key, 0)
        self._reserved.discard(key)


def _flops(packet: Any, args: Any, kwargs: Any, result: Any) -> int:
    """By PyTorch's own formulas, which have none for attention on CPUs."""
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    return flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0


def touched_bytes(tensor: Tensor) -> int:
    """Memory in whole pages that a write to this tensor makes resident; rows far apart share no page.

    Example: 10 rows of 100 floats that stand 32768 floats apart -> 10 pages
    """
    if tensor.is_contiguous() or tensor.dim() < 2:
        return tensor.numel() * tensor.itemsize
    row, stride = tensor.size(-1) * tensor.itemsize, max(tensor.stride()[:-1]) * tensor.itemsize
    rows = tensor.numel() // max(tensor.size(-1), 1)
    return rows * min(-(-row // PAGE) * PAGE, stride)


def without_values(model: nn.Module) -> FakeTensorMode:
    """Give a model on the meta device parameters and buffers without values, as on a CPU; the mode that it runs in."""
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


def trace(mode: FakeTensorMode, run: Callable[[], Any], resident: bool = False) -> Work:
    """What `run` does. What it returns is let go; its gradients and caches count as kept while it ran."""
    tracer = Tracer(resident)
    with mode, tracer:
        result = run()
    work = tracer.work  # before the result is let go
    del result
    return work


@contextmanager
def one_kernel_a_tile() -> Iterator[None]:
    """Let TRL's fused LM head fold each tile of logits by one operation in place, as its kernel does on GPUs.

    Where there is no such kernel, it takes a dozen, with as many copies of the tile.
    """

    def fold(tile: Tensor, *_: Any, **__: Any) -> None:
        tile.mul_(1.0)

    before = chunked_logprob._forward_tile, chunked_logprob._backward_tile
    chunked_logprob._forward_tile = chunked_logprob._backward_tile = fold
    try:
        yield
    finally:
        chunked_logprob._forward_tile, chunked_logprob._backward_tile = before
