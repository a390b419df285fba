"""a model's config and how it is trained -> the memory that each part of a training step holds.

The policy is built without weights, with the adapters, the types and the checkpointing that training gives it. Its
layers run on tensors without values (tracing.py); the memory of TRL's fused LM head is a formula (`Head`), because on
GPUs it is a kernel that no CPU runs. `rows` and `length` are those of one forward.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from ..dropout import switch_off_dropout
from ..models import base_model
from .tracing import MemoryTrace, without_values


MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
FULL = 4  # bytes of float32


@dataclass(frozen=True)
class Training:
    """What a policy's memory depends on besides its config."""

    dtype: torch.dtype = torch.float32  # of the weights
    autocast: torch.dtype | None = None
    adapter: PeftConfig | None = None
    checkpointing: bool = False
    disable_dropout: bool = False
    clip_gradients: bool = True
    on_gpu: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights."""

    trained: int
    frozen: int
    largest_block: int  # of a decoder layer, an embedding or a head: what sharding gathers together
    quantizable: int = 0  # frozen ones that 4 or 8 bits can hold

    @property
    def all(self) -> int:
        return self.trained + self.frozen


class Held(NamedTuple):
    """Bytes beyond what was held before: at the peak, and at the end."""

    peak: int
    kept: int


@dataclass(frozen=True)
class Head:
    """TRL's fused LM head: it makes the logits of some tokens and words at a time, and never holds all of them."""

    vocabulary: int
    hidden: int
    trained: bool
    copies: int  # of a tile, in float32, while it is folded; a kernel on GPUs makes none

    def scoring(self, tokens: int, itemsize: int) -> int:
        """Return the bytes of a forward, besides the hidden states of its tokens."""
        tile = min(tokens, TOKEN_CHUNK_SIZE) * min(self.vocabulary, _CHUNKED_LOGPROB_CHUNK_SIZE)
        return tokens * self.hidden * itemsize + tile * (itemsize + self.copies * FULL)

    def learning(self, tokens: int, itemsize: int) -> int:
        """Return the bytes of its backward, which sums gradients in float32, then casts them to the weights' type."""
        gradients = tokens * self.hidden + (self.vocabulary * self.hidden if self.trained else 0)
        return self.scoring(tokens, itemsize) + gradients * (FULL + itemsize)


class Policy:
    """A policy without weights."""

    def __init__(self, config: PreTrainedConfig, training: Training, make_optimizer: MakeOptimizer):
        self.config, self.training = config, training
        self._make_optimizer = make_optimizer
        self._model = _build(config, training)
        self.parameters = count_parameters(self._model)
        weight = base_model(self._model).get_output_embeddings().weight
        self.head = Head(len(weight), weight.size(1), weight.requires_grad, copies=0 if training.on_gpu else 6)
        self._mode = without_values(self._model)
        # Shapes repeat: in the stages of a plan, and in plans with other lengths.
        self.read, self.score = cache(self._read), cache(self._score)
        self.learn, self.update = cache(self._learn), cache(self._step)

    # ---- the parts of a step

    def _read(self, rows: int, length: int) -> Held:
        """Return what the forward that begins a generation holds; it keeps the KV cache."""
        with self._mode:
            ids = torch.ones(rows, length, dtype=torch.long)
        with self._tracing(training=False) as trace:
            cached = self._model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1
            ).past_key_values
            held = Held(trace.peak, trace.held)
            del cached
        return held

    def _score(self, rows: int, length: int) -> int:
        """Return the bytes of scoring rows without gradients, as the gain pass does."""
        with self._tracing(training=False) as trace:
            hidden = self._hidden(rows, length)
            in_head = trace.held + self.head.scoring(rows * length, hidden.itemsize)
        return max(trace.peak, in_head)

    def _learn(self, rows: int, length: int, accumulating: bool) -> int:
        """Return the bytes of one forward and backward. `accumulating`: gradients exist, and are counted elsewhere."""
        self._set_gradients(accumulating)
        head = self.head
        with self._tracing(training=True) as trace:
            hidden = self._hidden(rows, length)
            in_head = trace.held + head.learning(rows * length, hidden.itemsize)
            hidden.backward(torch.empty_like(hidden))
        self._set_gradients(False)
        kept_of_head = 0 if accumulating or not head.trained else head.vocabulary * head.hidden * hidden.itemsize
        return max(trace.peak + kept_of_head, in_head)

    def _step(self) -> Held:
        """Return what clipping and the first optimiser step hold; they keep the optimiser's state."""
        self._set_gradients(True)
        parameters = self._trained()
        with self._tracing(training=True) as trace:
            optimizer = self._make_optimizer(parameters)
            if self.training.clip_gradients:
                nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            held = Held(trace.peak, trace.held)
        self._set_gradients(False)
        return held

    # ---- how they run

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def _set_gradients(self, there: bool) -> None:
        with self._mode:
            for parameter in self._trained():
                parameter.grad = torch.empty_like(parameter) if there else None

    def _hidden(self, rows: int, length: int) -> Tensor:
        """Return the last layer's output, which the head takes."""
        ids = torch.ones(rows, length, dtype=torch.long)
        backbone: Any = base_model(self._model).base_model
        return backbone(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state

    @contextmanager
    def _tracing(self, training: bool) -> Iterator[MemoryTrace]:
        self._model.train(training)
        dtype = self.training.autocast
        autocast: AbstractContextManager = nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)
        try:
            with torch.set_grad_enabled(training), self._mode, MemoryTrace() as trace, autocast:
                yield trace
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"A plan runs the model's code without its weights, which {type(base_model(self._model)).__name__} "
                f"does not support: {error}"
            ) from error


def _build(config: PreTrainedConfig, training: Training) -> nn.Module:
    """Return the model on the meta device, prepared as `GRPOTrainer` prepares the loaded one."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config,
            dtype=training.dtype,
            attn_implementation="sdpa",
            trust_remote_code=training.trust_remote_code,
        )
        if training.adapter is not None:
            model = get_peft_model(model, training.adapter, autocast_adapter_dtype=False)
    if training.disable_dropout:
        switch_off_dropout(model)
    if training.checkpointing:
        base_model(model).gradient_checkpointing_enable()
        if training.adapter is not None:
            model.enable_input_require_grads()
    return model


def count_parameters(model: nn.Module) -> Parameters:
    """Count the weights of a model, each tied weight once."""
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    blocks = [module for group in model.modules() if isinstance(group, nn.ModuleList) for module in group]
    blocks += [module for module in model.modules() if isinstance(module, (nn.Embedding, nn.Linear))]
    head = base_model(model).get_output_embeddings()
    quantizable = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
    )
    return Parameters(
        trained=counts[True],
        frozen=counts[False],
        largest_block=max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0),
        quantizable=quantizable,
    )
