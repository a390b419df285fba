"""a model's config and how it is trained -> what each part of a training step runs and holds, as `Work`.

The policy is built without weights, with the adapters, the types and the checkpointing that training gives it. Each
method runs one part of a step on tensors without values; `rows` and `length` are those of one forward.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig
from trl.trainer.utils import add_fused_lm_head

from ..dropout import switch_off_dropout
from ..information_gain.packed_attention import packed_implementation
from ..models import base_model
from .tracing import Work, one_kernel_a_tile, trace, without_values


MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Training:
    """What a policy's memory and operations depend on beside its config."""

    dtype: torch.dtype = torch.float32  # of the weights
    autocast: torch.dtype | None = None
    adapter: PeftConfig | None = None
    checkpointing: bool = False
    disable_dropout: bool = False
    clip_gradients: bool = True
    attention: str = "sdpa"
    accelerated: bool = False  # on a GPU
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights; `tensors` hold them."""

    trained: int
    frozen: int
    largest_block: int  # of a decoder layer, an embedding or a head: what sharding gathers at once
    quantizable: int = 0  # of the frozen: those that 4 or 8 bits can hold
    tensors: int = 0

    @property
    def all(self) -> int:
        return self.trained + self.frozen


class Policy:
    """A policy without weights."""

    def __init__(self, config: PreTrainedConfig, training: Training, make_optimizer: MakeOptimizer):
        self.config, self.training = config, training
        self._make_optimizer = make_optimizer
        model = _build(config, training)
        self.packed, self.packing_reason = packed_implementation(base_model(model))
        self.parameters = count_parameters(model)
        self._mode: FakeTensorMode = without_values(model)
        self._model = model
        self.score, self.prefill = cache(self._score), cache(self._prefill)
        self.decode, self.learn, self.update = cache(self._decode), cache(self._learn), cache(self._update)

    # ---- the parts of a step

    def _prefill(self, rows: int, length: int) -> Work:
        """The first forward of a generation; what it keeps is the cache."""
        with self._evaluating():
            return self._trace(lambda: self._read(rows, length).past_key_values)

    @cached_property
    def cache_numbers(self) -> float:
        """Numbers that the model's own cache keeps of a token, whatever their precision is there."""
        lengths = (1, 65)  # what does not grow is no part of it
        with self._evaluating(), self._mode:
            sizes = [
                sum(leaf.numel() for layer in self._read(1, length).past_key_values.layers for leaf in _tensors(layer))
                for length in lengths
            ]
        return (sizes[1] - sizes[0]) / (lengths[1] - lengths[0])

    def _decode(self, rows: int, context: int) -> Work:
        """One sampled token for each row; the cache of the context counts as there before, the longer one as held."""
        with self._evaluating():
            with self._mode:
                cached = self._read(rows, context).past_key_values
            return self._trace(lambda: self._read(rows, context + 1, cached))

    def _score(self, rows: int, length: int) -> Work:
        """Log-probabilities of rows, without gradients: the gain pass, the old and the reference policy."""
        with self._evaluating():
            return self._trace(lambda: self._logps(rows, length))

    def _learn(self, rows: int, length: int, accumulating: bool) -> Work:
        """Forward and backward of one micro-batch. `accumulating`: gradients are there, and counted elsewhere."""
        self._model.train()
        with self._mode:
            for parameter in self._trained():
                parameter.grad = torch.empty_like(parameter) if accumulating else None
        work = self._trace(lambda: self._logps(rows, length).sum().backward())
        for parameter in self._trained():
            parameter.grad = None
        return work

    def _update(self) -> Work:
        """Clipping and an optimiser step. What the first one keeps is the optimiser's state; later ones find it."""
        with self._mode:
            for parameter in self._trained():
                parameter.grad = torch.empty_like(parameter)
            optimizer = self._make_optimizer(self._trained())

        def run() -> Any:
            if self.training.clip_gradients:
                nn.utils.clip_grad_norm_(self._trained(), 1.0)
            optimizer.step()
            return optimizer.state

        first, later = self._trace(run), self._trace(run)
        for parameter in self._trained():
            parameter.grad = None
        return replace(later, peak_bytes=first.peak_bytes, kept_bytes=first.kept_bytes)

    # ---- how

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def _read(self, rows: int, length: int, cached: Any = None) -> Any:
        new = length if cached is None else 1
        with self._autocast():
            return self._model(
                input_ids=torch.ones(rows, new, dtype=torch.long),
                attention_mask=torch.ones(rows, length, dtype=torch.long),
                past_key_values=cached,
                use_cache=True,
                logits_to_keep=1,
            )

    def _logps(self, rows: int, length: int) -> Tensor:
        ids = torch.ones(rows, length, dtype=torch.long)
        with self._autocast():
            return self._model(
                input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids.clone(), fused_lm_head=True
            ).log_probs

    def _autocast(self) -> AbstractContextManager:
        dtype = self.training.autocast
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)

    def _evaluating(self) -> AbstractContextManager:
        self._model.eval()
        return torch.no_grad()

    def _trace(self, run: Callable[[], Any]) -> Work:
        with one_kernel_a_tile() if self.training.accelerated else nullcontext():
            try:
                return trace(self._mode, run, resident=not self.training.accelerated)
            except (RuntimeError, NotImplementedError) as error:
                raise ValueError(
                    f"The code of {type(base_model(self._model)).__name__} cannot be run without weights, as a plan "
                    f"does: {error}"
                ) from error


def _tensors(layer: Any) -> list[Tensor]:
    return [value for value in vars(layer).values() if isinstance(value, Tensor)]


def _build(config: PreTrainedConfig, training: Training) -> nn.Module:
    """The model on the meta device, as `GRPOTrainer` makes it of the loaded one."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config,
            dtype=training.dtype,
            attn_implementation=training.attention,
            trust_remote_code=training.trust_remote_code,
        )
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
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
    """Each tied weight once."""
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
        tensors=len(list(model.parameters())),
    )
