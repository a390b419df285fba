"""the machine at hand -> `Machine`, by micro-benchmarks of a few seconds.

    matrix products, attention, products of two tensors, each at several sizes -> rates
    a model of a few hundred weights, whose arithmetic takes no time         -> cost of an operation

Nothing here knows the model or the recipe that is planned.
"""

import statistics
import time
from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from ..cli.machine import device_name
from .hardware import Curve, Machine
from .tracing import Tracer


MATMULS = (32, 64, 128, 256, 512, 1024)
ATTENDED = (16, 64, 256, 512)
FLOATS = (2**10, 2**13, 2**16, 2**19, 2**22, 2**24)
RING_FLOATS, MOST_TENSORS = 2**24, 512
SAMPLED = 12
REPEATS = 5
# Seconds that this thread had a processor: what other processes take meanwhile does not count. On a machine at rest it
# is the time of day, since the thread that asks for an operation takes part in it.
clock = time.thread_time


def measure() -> Machine:
    """This machine's CPU with the threads that PyTorch has."""
    device = torch.device("cpu")
    forward, backward, sampling = _op_costs()
    return Machine(
        name=device_name(device),
        source="measured",
        memory_bytes=psutil.virtual_memory().total,
        matmul=_curve(_matmul, MATMULS),
        attention=_curve(_attention, ATTENDED),
        step=_curve(_step, ATTENDED),
        bandwidth=_curve(_products, FLOATS),
        forward_op_seconds=forward,
        backward_op_seconds=backward,
        sampling_seconds=sampling,
        node_link=psutil.virtual_memory().total,  # one device: nothing is sent
        cluster_link=psutil.virtual_memory().total,
        asynchronous=False,
    )


def median_seconds(run: Callable[[], object], least: float = 0.02) -> float:
    """Of one run: as many at a time as take a while, timed several times after a warm-up."""
    run()
    start = clock()
    run()
    number = max(1, int(least / max(clock() - start, 1e-7)))
    timings = []
    for _ in range(REPEATS):
        start = clock()
        for _ in range(number):
            run()
        timings.append((clock() - start) / number)
    return statistics.median(timings)


def _curve(make: Callable[[int], tuple[Callable[[], object], float, int]], sizes: tuple[int, ...]) -> Curve:
    """Rate by amount: `make(size)` gives what is run, how much one operation of it is, and their number."""
    found = []
    with torch.no_grad():
        for size in sizes:
            run, amount, number = make(size)
            found.append((amount, amount * number / median_seconds(run)))
    return Curve(tuple(amount for amount, _ in found), tuple(rate for _, rate in found))


def _matmul(size: int) -> tuple[Callable[[], object], float, int]:
    a, b = torch.randn(size, size), torch.randn(size, size)
    return lambda: a @ b, 2.0 * size**3, 1


def _attention(length: int) -> tuple[Callable[[], object], float, int]:
    q = torch.randn(4, 8, length, 64)
    mask = torch.ones(4, 1, length, length, dtype=torch.bool).tril()

    def run() -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    return run, 4.0 * 4 * 8 * length**2 * 64, 1


def _step(length: int) -> tuple[Callable[[], object], float, int]:
    """One token's attention to so many before it; the cache of one row of a batch is not that of the next."""
    q, cache = torch.randn(32, 8, 1, 64), torch.randn(32, 8, length, 64)
    mask = torch.ones(32, 1, 1, length, dtype=torch.bool)

    def run() -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, cache, cache, attn_mask=mask)

    return run, 4.0 * 32 * 8 * length * 64, 1


def _products(floats: int) -> tuple[Callable[[], object], float, int]:
    """Elementwise, over operands that no cache holds; results are kept for a while, as activations are."""
    number = max(2, min(MOST_TENSORS, RING_FLOATS // floats))
    pairs = [(torch.randn(floats), torch.randn(floats)) for _ in range(number)]

    def run() -> list[Tensor]:
        return [a * b for a, b in pairs]

    return run, 3.0 * 4 * floats, number


def _op_costs() -> tuple[float, float, float]:
    """Seconds of an operation in a forward and in a backward; and of sampling a token, beside its forward."""
    size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=4, vocab_size=16, max_position_embeddings=64))
    ids = torch.ones(2, 4, dtype=torch.long)

    def forward() -> Tensor:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits

    def both() -> None:
        forward().sum().backward()

    with Tracer() as tracer:
        both()
    ops = tracer.work.ops
    in_backward = sum(number for op, number in ops.items() if op.backward)
    in_forward = sum(ops.values()) - in_backward
    forward_seconds = median_seconds(forward)
    backward_seconds = median_seconds(both) - forward_seconds
    return (
        forward_seconds / in_forward,
        max(backward_seconds, 0.0) / in_backward,
        _sampling_seconds(model, ids, forward_seconds / in_forward),
    )


def _sampling_seconds(model: LlamaForCausalLM, ids: Tensor, op_seconds: float) -> float:
    """What `generate` takes for a token beyond the operations of the forward."""
    model.eval()

    def settings(tokens: int) -> GenerationConfig:
        return GenerationConfig(
            do_sample=True, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0, eos_token_id=1
        )

    def generate(tokens: int) -> Tensor:
        return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings(tokens))

    with torch.no_grad():
        cached = model(input_ids=ids, use_cache=True).past_key_values
        with Tracer() as tracer:
            model(input_ids=ids[:, :1], attention_mask=torch.ones(2, 5), past_key_values=cached, use_cache=True)
    step = (median_seconds(lambda: generate(1 + SAMPLED)) - median_seconds(lambda: generate(1))) / SAMPLED
    return max(step - tracer.work.number * op_seconds, 0.0)
