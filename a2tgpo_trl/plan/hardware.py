"""the name of a GPU -> what it holds and how fast it computes, reads and talks: `Machine`; operations -> seconds.

Figures of GPUs are those of the makers' public data sheets (July 2026): memory, dense bfloat16 arithmetic without
sparsity, memory bandwidth, and the links of one GPU to others in its node and in other nodes, in one direction. What
of them is reached is an assumption (`Shares`). A machine at hand is measured instead (`calibration`).
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..lookup import nearest
from .tracing import Op, Work


GB, TERA = 1e9, 1e12
GIB = 2**30


@dataclass(frozen=True)
class Curve:
    """A rate that depends on the size of what is done: measured at some sizes, between them a straight line."""

    sizes: tuple[float, ...]
    rates: tuple[float, ...]

    @classmethod
    def constant(cls, rate: float) -> "Curve":
        return cls((1.0,), (rate,))

    def at(self, size: float) -> float:
        """Example: Curve((1, 3), (10, 30)) at 2 -> 20; at 5 -> 30"""
        right = bisect_left(self.sizes, size)
        if right == 0 or right == len(self.sizes):
            return self.rates[min(right, len(self.sizes) - 1)]
        (low, high), (slow, fast) = self.sizes[right - 1 : right + 1], self.rates[right - 1 : right + 1]
        return slow + (fast - slow) * (size - low) / (high - low)


@dataclass(frozen=True)
class Machine:
    """A device and its links. Rates are those that are reached, not those that are promised."""

    name: str
    source: str
    memory_bytes: float
    matmul: Curve  # flops/s, by the flops of one operation
    attention: Curve
    step: Curve  # attention of one token to those before it
    bandwidth: Curve  # bytes/s, by the bytes of one operation
    forward_op_seconds: float  # what an operation costs, however small
    backward_op_seconds: float
    sampling_seconds: float  # of a sampled token of all rows, beside the model's forward
    node_link: float  # bytes/s
    cluster_link: float
    asynchronous: bool = True  # the cost of starting an operation hides behind the work of the one before
    runtime_bytes: float = 0.0  # that the device's own software takes in each process

    def op_seconds(self, op: Op) -> float:
        """max(flops / rate, bytes / bandwidth), and the cost of an operation: beside that, or where it is more."""
        cost = self.backward_op_seconds if op.backward else self.forward_op_seconds
        curve = {"attention": self.attention, "step": self.step}.get(op.kind, self.matmul)
        work = max(op.flops / curve.at(op.flops), op.bytes / self.bandwidth.at(op.bytes))
        return max(work, cost) if self.asynchronous else work + cost

    def seconds(self, work: Work) -> float:
        """Of all operations one after the other."""
        return sum(self.op_seconds(op) * number for op, number in work.ops.items())


@dataclass(frozen=True)
class Shares:
    """Which share of a data sheet's figures is reached."""

    flops: float = 0.5  # large matrix products; the rest of a step is counted operation by operation
    attention: float = 0.35
    bandwidth: float = 0.75
    links: float = 0.7


@dataclass(frozen=True)
class Sheet:
    """A data sheet: GB, TFLOP/s of dense bfloat16, GB/s of memory, GB/s to GPUs of the node and of other nodes."""

    memory: float
    tflops: float
    bandwidth: float
    node_link: float
    cluster_link: float
    source: str


# An InfiniBand or Ethernet port of 400 Gbit/s (200 on older ones) a GPU is what such machines are commonly sold with.
SHEETS = {
    "h100": Sheet(80, 989, 3350, 450, 50, "NVIDIA H100 SXM data sheet"),
    "h100-pcie": Sheet(80, 756, 2000, 64, 25, "NVIDIA H100 PCIe data sheet"),
    "h200": Sheet(141, 989, 4800, 450, 50, "NVIDIA H200 SXM data sheet"),
    "h20": Sheet(96, 148, 4000, 450, 50, "NVIDIA H20 data sheet"),
    "b200": Sheet(180, 2250, 7700, 900, 50, "NVIDIA DGX B200 data sheet"),
    "a100-80gb": Sheet(80, 312, 2039, 300, 25, "NVIDIA A100 80GB SXM data sheet"),
    "a100-40gb": Sheet(40, 312, 1555, 300, 25, "NVIDIA A100 40GB SXM data sheet"),
    "l40s": Sheet(48, 362, 864, 32, 12.5, "NVIDIA L40S data sheet"),
    "l4": Sheet(24, 121, 300, 32, 12.5, "NVIDIA L4 data sheet"),
    "a10g": Sheet(24, 70, 600, 32, 12.5, "NVIDIA A10G, AWS G5 product page"),
    "rtx4090": Sheet(24, 165, 1008, 32, 12.5, "NVIDIA Ada GPU architecture whitepaper"),
    "mi300x": Sheet(192, 1307, 5300, 448, 50, "AMD Instinct MI300X data sheet"),
}
THIS = ("this", "cpu")
# What PyTorch takes to start an operation from Python, and the launch of a kernel after it; a sampler's own work for
# a token, and CUDA's context: commonly seen, and not measured here.
OP_SECONDS, SAMPLING_SECONDS, CONTEXT_BYTES = 9e-6, 2e-3, 0.8 * GIB


def sheet_of(name: str) -> Sheet:
    """The sheet of this name."""
    if name.lower() not in SHEETS:
        names = (*SHEETS, *THIS)
        raise ValueError(f"--gpu: no data sheet of {name!r}.{nearest(name.lower(), names)} Known: {', '.join(names)}.")
    return SHEETS[name.lower()]


def from_sheet(name: str, shares: Shares, op_seconds: float = OP_SECONDS) -> Machine:
    """The machine of a data sheet, with the shares of it that are assumed to be reached."""
    sheet = sheet_of(name)
    return Machine(
        name=name.lower(),
        source=sheet.source,
        memory_bytes=sheet.memory * GB,
        matmul=Curve.constant(sheet.tflops * TERA * shares.flops),
        attention=Curve.constant(sheet.tflops * TERA * shares.attention),
        step=Curve.constant(sheet.tflops * TERA * shares.attention),  # reading the cache takes longer
        bandwidth=Curve.constant(sheet.bandwidth * GB * shares.bandwidth),
        forward_op_seconds=op_seconds,
        backward_op_seconds=op_seconds,
        sampling_seconds=SAMPLING_SECONDS,
        node_link=sheet.node_link * GB * shares.links,
        cluster_link=sheet.cluster_link * GB * shares.links,
        runtime_bytes=CONTEXT_BYTES,
    )


def mean_of(machines: Sequence[Machine]) -> Machine:
    """One machine of several measurements of the same one: rates and costs averaged."""

    def number(name: str) -> float:
        return sum(getattr(machine, name) for machine in machines) / len(machines)

    def curve(name: str) -> Curve:
        curves: list[Curve] = [getattr(machine, name) for machine in machines]
        rates = zip(*(curve.rates for curve in curves), strict=True)
        return Curve(curves[0].sizes, tuple(sum(of_size) / len(curves) for of_size in rates))

    return replace(
        machines[0],
        matmul=curve("matmul"),
        attention=curve("attention"),
        step=curve("step"),
        bandwidth=curve("bandwidth"),
        forward_op_seconds=number("forward_op_seconds"),
        backward_op_seconds=number("backward_op_seconds"),
        sampling_seconds=number("sampling_seconds"),
    )
