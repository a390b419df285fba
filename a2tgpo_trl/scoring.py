"""ToolTrainer whose forwards read no padding, no token twice, and score what was sampled alone.

    micro-batches drawn at random -> the same rows, shared out so that less is read -> cut to their own longest rows
    a forward over rows -> one that reads shared beginnings once; the head is given sampled tokens

Each is exact up to rounding, and has a setting. Training that is TRL's GRPO to the bit (`A2TGPOConfig.trains_as_grpo`)
uses none of them.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cached_property
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from trl.models.utils import disable_gradient_checkpointing

from .config import A2TGPOConfig
from .log_probabilities import obstacle_to_scoring, scored_completions
from .models import base_model, has_virtual_tokens, length_matters, positions_are_relative
from .precision import EXACT, training_unit
from .rollout.micro_batches import SUMS_OF_ROWS, arranged
from .rollout.padding import Padding, padding_of, trimmed
from .rollout.trainer import ToolTrainer
from .shared_prefixes import (
    BucketsLost,
    obstacle_to_sharing,
    score_shared,
    shared_rows,
    sharing_attention,
    sharing_error,
    sharing_tolerance,
)


logger = get_logger(__name__)

Scores = tuple[Tensor, Tensor | None, Tensor | None]  # log-probabilities, entropies, the auxiliary loss of a mixture


class ScoringTrainer(ToolTrainer):
    """The layer between [`ToolTrainer`] and [`A2TGPOTrainer`]: forwards that compute the same but read less."""

    args: A2TGPOConfig
    _buffered_inputs: list[dict[str, Any]] | None  # micro-batches of the rollouts that are trained on
    _loss_inputs: dict[str, Any] | None = None  # None outside of the loss
    _until_backward: ExitStack | None = None  # what ends with a training step

    # ---- micro-batches

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        batches = self._buffered_inputs
        if not self._trims_padding or batches is None or batches is before:
            return inputs
        shares = self._shares_prefixes  # tried before anything relies on it
        if together := self._summed_micro_batches:
            batches = arranged(batches, together, shares)
        self._buffered_inputs = [self._trimmed(batch) for batch in batches]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    @property
    def _summed_micro_batches(self) -> int:
        """How many neighbouring micro-batches may exchange rows because their gradients are one sum; 0 if none."""
        args = self.args
        steps, together = args.steps_per_generation, min(args.steps_per_generation, args.gradient_accumulation_steps)
        whole = max(steps, args.gradient_accumulation_steps) % together == 0
        # The parent takes means and quantiles of entropies over one micro-batch.
        entropies = args.entropy_coef != 0 or args.use_adaptive_entropy or args.top_entropy_quantile < 1
        # Experts are balanced over a micro-batch, too.
        sums = args.knows_turns and self.loss_type in SUMS_OF_ROWS and not entropies and not self.aux_loss_enabled
        return together if args.sorted_rows and whole and sums else 0

    @cached_property
    def _shares_prefixes(self) -> bool:
        """Whether a forward reads shared beginnings of its rows once. Tried once, by all ranks together."""
        if not (self.args.shared_prefixes and self.args.knows_turns and self._trims_padding):
            return False
        base = base_model(self.model)
        obstacle = obstacle_to_sharing(base)
        if has_virtual_tokens(self.model):
            obstacle = "its adapter puts virtual tokens before the prompt"
        if self.pad_to_multiple_of is not None:
            obstacle = "their width must be a multiple (pad_to_multiple_of)"
        if self.args.torch_compile:
            obstacle = "a compiled model would be compiled again for each width"
        obstacle = obstacle or self._trial_of_sharing(base)
        if obstacle is not None:
            logger.info(f"Forward passes read rows one by one, because {obstacle}.")
        return obstacle is None

    def _trial_of_sharing(self, base: PreTrainedModel) -> str | None:
        """Why a trial with a small example rules sharing out, in words; None if it does not."""
        try:
            error = sharing_error(self.model_wrapped, base, self.accelerator.device, self.accelerator.autocast)
        except BucketsLost:  # on all ranks
            return "the model's layers do not pass on to their attention where the rows are"
        if not self._ranks.max(error) <= sharing_tolerance(training_unit(self.accelerator, self.model)):
            return f"log-probabilities differ by {error:.2g} from those of plain rows"  # NaN is no agreement
        return None

    @property
    def _trims_padding(self) -> bool:
        """Whether micro-batches are no wider than their rows.

        They keep their padding if training is TRL's GRPO to the bit, and for a model whose tokens depend on the width
        of their row: old and reference log-probabilities come from other micro-batches than the loss.
        """
        return not self.args.trains_as_grpo and not length_matters(base_model(self.model))

    def _padding_of(self, prompt_mask: Tensor, completion_mask: Tensor) -> Padding:
        relative = positions_are_relative(base_model(self.model))
        return padding_of(prompt_mask, completion_mask, left=relative, multiple=self.pad_to_multiple_of)

    def _trimmed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A micro-batch without its padding, and with old log-probabilities of the same forward that the loss makes.

        In 16 bits they change with the width of the row by more than a turn's clip range.
        """
        batch = trimmed(batch, self._padding_of(batch["prompt_mask"], batch["completion_mask"]))
        if "old_per_token_logps" not in batch:
            return batch
        if self.args.is_on_policy:
            del batch["old_per_token_logps"]  # without them, the parent takes those of the loss itself
        elif self._scores_trimmed:
            ids, mask = (
                torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], dim=1) for name in ("ids", "mask")
            )
            base = base_model(self.model)
            # Compiled kernels round in another way.
            model = self.accelerator.unwrap_model(self.model_wrapped) if self.args.torch_compile else self.model
            with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                with self._sharing(base):
                    batch["old_per_token_logps"], _, _ = self._score(model, base, ids, mask, _sampled(batch))
        return batch

    @property
    def _scores_trimmed(self) -> bool:
        """Whether old log-probabilities of a batch are computed again once its micro-batches are made."""
        coarse = training_unit(self.accelerator, self.model) > EXACT
        return coarse and self._trims_padding and not self.args.is_on_policy

    # ---- log-probabilities

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, *args: Any, **kwargs: Any
    ) -> Scores:
        if self._loss_inputs is not None:
            sampled, base = _sampled(self._loss_inputs), base_model(self.model)
            return self._score(model, base, input_ids, attention_mask, sampled, *args, **kwargs)
        answered = self._batch is not None and self._batch.old_logps is not None
        if not answered and self._trims_padding and kwargs.get("batch_size"):
            return self._score_chunks(model, input_ids, attention_mask, logits_to_keep, kwargs["batch_size"])
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def _score_chunks(self, model: Any, ids: Tensor, mask: Tensor, completion: int, size: int) -> Scores:
        """The pass over a whole batch by the old policy or the reference, with each chunk as wide as its rows."""
        base, sampled = base_model(self.accelerator.unwrap_model(model)), self._sampled_of_batch(mask[:, -completion:])
        found = []
        with self._sharing(base):
            for start in range(0, len(ids), size):
                rows = slice(start, start + size)
                padding = self._padding_of(mask[rows, :-completion], mask[rows, -completion:])
                kept = sampled[rows, : completion - padding.right]
                logps, _, _ = self._score(model, base, padding.cut(ids[rows]), padding.cut(mask[rows]), kept)
                found.append(pad(logps, (0, padding.right)))
        return torch.cat(found), None, None

    def _sampled_of_batch(self, completion_mask: Tensor) -> Tensor:
        """Which tokens of the rollouts being made were sampled."""
        tokens = None if self._batch is None else self._batch.tokens
        if tokens is None:
            return completion_mask
        sampled = torch.zeros_like(completion_mask)
        for row, of_row in enumerate(tokens.model_mask):
            sampled[row, : len(of_row)] = torch.tensor(of_row, device=sampled.device)
        return sampled * completion_mask

    def _score(
        self, model: Any, base: PreTrainedModel, ids: Tensor, mask: Tensor, sampled: Tensor, *args: Any, **kwargs: Any
    ) -> Scores:
        """Score by a forward of `model`, which wraps `base`; call it in the attention that shared rows need."""
        completion, rows = sampled.size(1), None
        scored = sampled if self.args.sampled_tokens_only else mask[:, -completion:]
        text = self._trims_padding and self._scores_text and not _needs_more(kwargs)
        if text and self._shares_prefixes:
            rows = shared_rows(ids, mask, scored, base.config.get_text_config())
        if rows is not None:
            return *score_shared(model, base, rows, self.accelerator.autocast), None
        if text and self.args.sampled_tokens_only:
            return *scored_completions(model, base, ids, mask, scored, self.accelerator.autocast), None
        return super()._get_per_token_logps_and_entropies(model, ids, mask, completion, *args, **kwargs)

    @cached_property
    def _scores_text(self) -> bool:
        """Whether the model has a head that can be given only sampled tokens.

        A loss of a mixture's router needs all tokens, and old and reference log-probabilities are of the same tokens
        as the loss's: where only one of the two has a tool token, their difference may be too large for KL.
        """
        has_head = obstacle_to_scoring(base_model(self.model)) is None
        return has_head and not has_virtual_tokens(self.model) and not self.aux_loss_enabled

    def _sharing(self, base: PreTrainedModel) -> AbstractContextManager[None]:
        return sharing_attention(base) if self._shares_prefixes else nullcontext()

    # ---- loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> Tensor:
        """Keep the attention of shared rows until after the backward pass, where gradient checkpointing reruns it."""
        try:
            with ExitStack() as self._until_backward:
                return super().training_step(model, inputs, *args)
        finally:
            self._until_backward = None

    def _compute_loss(self, model, inputs: dict[str, Any]) -> Tensor:
        self._loss_inputs = dict(inputs)
        with ExitStack() as alone:
            (self._until_backward or alone).enter_context(self._sharing(base_model(self.model)))
            try:
                return super()._compute_loss(model, self._loss_inputs)
            finally:
                self._loss_inputs = None


def _sampled(batch: Mapping[str, Any]) -> Tensor:
    """Which tokens of the completions were sampled, and are trained on."""
    return batch["completion_mask"] * batch.get("tool_mask", 1)


def _needs_more(options: Mapping[str, Any]) -> bool:
    """Whether a forward takes more than text, or is asked for more than log-probabilities and entropies."""
    known = ("compute_entropy", "batch_size")
    return any(value is not None and value is not False for name, value in options.items() if name not in known)
