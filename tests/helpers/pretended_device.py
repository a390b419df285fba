"""A pretended accelerator: its tensors say that they lie on it, and their numbers lie in the memory of the CPU.

Importing this module makes "pretended" the device of Accelerate, if no GPU is visible. Most of what a GPU refuses is
refused here too: an operation on tensors of two devices, a CPU's random generator for a tensor of the device, a numpy
view. (As there, indices may lie on the CPU. Any operation may read a single number of the CPU, which a GPU allows in
some.) The CPU computes all else, so a run gives a CPU's numbers, up to rounding.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_iter, tree_map


class Backend(registration._DummyBackendModule):
    """What torch asks of the module of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, *_) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, *_) -> None:
        torch.set_rng_state(state)

    def nothing(self, *_) -> None: ...

    set_device = synchronize = empty_cache = manual_seed = nothing


os.environ["ACCELERATE_TORCH_DEVICE"] = "pretended:0"
registration._setup_privateuseone_for_python_backend("pretended", Backend())
DEVICE = torch.device("pretended:0")


class Pretended(Tensor):
    """A tensor on the pretended device; `inner` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretended":
        like = dict(strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype)
        return Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **like)

    def __init__(self, inner: Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})

    # torch makes tensors of lists and of numbers on a path that no Python code can take over.

    def __getitem__(self, where: Any) -> Tensor:
        every = where if isinstance(where, tuple) else (where,)
        return Tensor.__getitem__(self, tuple(torch.as_tensor(one) if isinstance(one, list) else one for one in every))

    def __setitem__(self, where: Any, value: Any) -> None:
        where = where if isinstance(where, tuple) else (where,)
        first = next((i for i, one in enumerate(where) if isinstance(one, (list, Tensor))), len(where))
        before, lists = where[:first], where[first:]
        part = self[before]
        value = value if isinstance(value, Tensor) else self.new_tensor(value)
        if lists:
            assert all(isinstance(one, int) for one in before), "only numbers come before lists so far"
            part.index_put_([torch.as_tensor(one) for one in lists], value)
        else:
            part.copy_(value)

    def new_tensor(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=self.dtype, device=DEVICE)

    def __repr__(self, **_) -> str:
        return f"Pretended({self.inner!r})"

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, *_, **__):
        raise TypeError("a tensor on the pretended device has no numpy view")

    __array__ = numpy


def run(operation: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operation on the numbers, after the checks that a GPU makes."""
    check(operation, args, kwargs)
    named = kwargs.get("device")
    ours = any(isinstance(one, Pretended) for one in tree_iter((args, kwargs)))
    here = ours if named is None else torch.device(named).type == DEVICE.type
    inner_args, inner_kwargs = tree_map(lambda one: one.inner if isinstance(one, Pretended) else one, (args, kwargs))
    out = operation(*inner_args, **(inner_kwargs if named is None else inner_kwargs | {"device": "cpu"}))
    if operation._schema.is_mutable:
        return written(operation, args, kwargs)
    return tree_map(lambda one: Pretended(one) if isinstance(one, Tensor) else one, out) if here else out


def check(operation: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
    tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
    if not any(isinstance(one, Pretended) for one in tensors):
        return
    generator = kwargs.get("generator")
    if generator is not None and generator._cdata not in GENERATORS:
        raise RuntimeError(f"{operation} has a random generator of another device")
    name = operation.overloadpacket.__name__
    if name in ("copy_", "_to_copy"):
        return
    if any(isinstance(one, Tensor) and not isinstance(one, Pretended) for one in targets(operation, args, kwargs)):
        raise RuntimeError(f"{operation} writes into the CPU: tensors on two devices")
    indices = {id(one) for one in tree_iter(args[1])} if name in INDEXING else set()
    for one in tensors:
        if not isinstance(one, Pretended) and one.dim() > 0 and id(one) not in indices:
            shapes = [(one.device.type, tuple(one.shape)) for one in tensors]
            raise RuntimeError(f"{operation} has tensors on two devices: {shapes}")


INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


def targets(operation: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> Iterator[Any]:
    """The arguments that an operation writes into."""
    for i, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[i] if i < len(args) else kwargs[argument.name]


def written(operation: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What an operation that writes into its arguments returns: these arguments."""
    returned = tuple(targets(operation, args, kwargs))[: len(operation._schema.returns)]
    for one in returned:
        assert not isinstance(one, Pretended) or one.shape == one.inner.shape, (
            f"{operation} resizes, and is not taken over"
        )
    return returned[0] if len(returned) == 1 else returned or None


def fallback(operation: torch._ops.OpOverload, *args, **kwargs):
    """Operations without any tensor on the device, such as `zeros`."""
    return run(operation, args, kwargs)


LIBRARY = torch.library.Library("_", "IMPL")
LIBRARY.fallback(fallback, "PrivateUse1")
LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


def on_the_cpu_first(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A maker of tensors from numbers, which torch too fills in on a path that no Python code can take over."""

    def made(*args, device=None, requires_grad=False, **kwargs) -> Tensor:
        tensor = make(*args, **kwargs)
        tensor = tensor if device is None else tensor.to(device)
        return tensor.requires_grad_() if requires_grad else tensor

    return made


GENERATORS: dict[int, torch.Generator] = {}  # those of the device, by address, which no other can then get


class Generator(torch.Generator):
    """A generator of the CPU, also where one of the device is asked for."""

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu")
        if torch.device(device).type == DEVICE.type:
            GENERATORS[made._cdata] = made
        return made


_device_constructors()  # which functions `with torch.device(...)` takes over: those of torch
torch.__future__.set_swap_module_params_on_conversion(True)  # tied weights stay tied when a model is moved
torch.Generator = Generator
torch.tensor = on_the_cpu_first(torch.tensor)
torch.as_tensor = on_the_cpu_first(torch.as_tensor)
torch.arange = on_the_cpu_first(torch.arange)  # which else is made empty, then resized
