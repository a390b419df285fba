"""a seed per rollout -> tokens that a row draws with its own random numbers, whichever rows are beside it.

Generation draws from one stream for all rows of a batch, so a rollout depends on the batch it is sampled in, and the
batch on the number of processes. Here each request draws from its own seed: the same seed gives the same rollouts on
one process or on eight, in any batches, and after a run was resumed.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel


def seed_of(*parts: Any) -> int:
    """A number from 0 to 2**63 - 1 that depends on all parts and their order.

    Example: seed_of(42, "train", 3) -> always the same number, far from that of seed_of(42, "train", 4)
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class OwnDraws(LogitsProcessor):
    """The last of the processors: leaves each row one token, drawn with the row's own random numbers.

    The token is the one where a uniform number falls on the cumulated probabilities. Any draw from what is left then
    gives that token.

    Example: probabilities 0.2, 0.5, 0.3 add up to 0.2, 0.7, 1.0; the number 0.65 is the second token
    """

    def __init__(self, seeds: Sequence[int]):
        self._streams = [random.Random(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if len(scores) != len(self._streams):
            raise ValueError(
                f"{len(scores)} rows are sampled for {len(self._streams)} rollouts. Beam search and several "
                "sequences per prompt (generation_kwargs) need seeded_rollouts=False."
            )
        draws = [stream.random() for stream in self._streams]
        tokens, total = drawn_tokens(scores, draws)
        drawn = torch.full_like(scores, -torch.inf).scatter_(1, tokens.unsqueeze(1), 0.0)
        # NaN stays NaN: `generate` rightly refuses to draw from it.
        return torch.where(total.isnan().unsqueeze(1), scores, drawn)


def drawn_tokens(scores_RV: Tensor, draws: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Tokens (R,) where these uniform numbers fall, and the sums (R,) of the probabilities: NaN, or 1."""
    # In float64, or a sum over the vocabulary would lose rare tokens. MPS has no float64, so there the CPU draws.
    device = scores_RV.device
    where = torch.device("cpu") if device.type == "mps" else device
    draws_R1 = torch.tensor(draws, dtype=torch.float64, device=where).unsqueeze(1)
    cumulated_RV = scores_RV.to(where).softmax(dim=-1, dtype=torch.float32).cumsum(dim=-1, dtype=torch.float64)
    total_R1 = cumulated_RV[:, -1:]
    # Stay below the total, to which the product may be rounded: only impossible tokens lie above it.
    places_R1 = torch.minimum(draws_R1 * total_R1, torch.nextafter(total_R1, torch.zeros_like(total_R1)))
    tokens_R1 = torch.searchsorted(cumulated_RV, places_R1, right=True).clamp(max=scores_RV.size(1) - 1)
    return tokens_R1.squeeze(1).to(device), total_R1.squeeze(1).to(device)


@contextmanager
def own_draws(model: PreTrainedModel, seeds: Sequence[int] | None) -> Iterator[None]:
    """Let `model.generate` sample its rows, one for each seed, with their own numbers. With None, nothing changes.

    Processors that are passed to `generate` come before those of temperature and truncation, so ours is appended to
    all of them where they are made.
    """
    if seeds is None:
        yield
        return
    make = model._get_logits_processor

    def make_with_draws(generation_config: Any, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        processors = make(generation_config, *args, **kwargs)
        if generation_config.do_sample:
            processors.append(OwnDraws(seeds))
        return processors

    model._get_logits_processor = make_with_draws
    try:
        yield
    finally:
        del model._get_logits_processor


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """After sampling, restore modules to their modes, and weights, gradients and buffers to their precision.

    TRL's continuous batching leaves the model in training mode and cast to 16 bits. Casting back would keep the
    rounding, so what was cast is replaced by what was there before.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [(module, *named) for module in modules for named in module.named_buffers(recurse=False)]
    weights = list(model.parameters())
    cast_in_place = [*weights, *(weight.grad for weight in weights if weight.grad is not None)]
    before = [(tensor, tensor.data) for tensor in cast_in_place]
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
        for tensor, data in before:
            if tensor.dtype != data.dtype:
                tensor.data = data
        for module, name, buffer in buffers:
            if getattr(module, name).dtype != buffer.dtype:
                setattr(module, name, buffer)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws inside come from the seed; draws afterwards continue as if nothing had happened."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield
