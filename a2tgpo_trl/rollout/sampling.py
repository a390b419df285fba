"""requests for turns -> turns, by whichever engine TRL's trainer samples with, on one rank or on all together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from accelerate.logging import get_logger
from torch import nn
from trl.extras.profiling import profiling_context
from trl.models.utils import unwrap_model_for_generation

from ..models import base_model, uncompiled
from ..precision import training_unit
from ..resume.trainer import Resumable
from .drawing import Sampling, sampling_of
from .engines import ContextLimit, Ends, Engine, LockStep, Request, Tail, listed, most_tokens
from .keeping import keeping_error, keeping_tolerance, obstacle_to_keeping
from .seeds import own_draws
from .settings import ToolConfig
from .transformers_engine import TransformersStream
from .vllm_engine import VLLMStream, awake, can_stream, context_limit


logger = get_logger(__name__)


class SamplingTrainer(Resumable):
    """[`~trl.GRPOTrainer`] that samples single turns, each with its own context, seed and token limit."""

    args: ToolConfig

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # The parent cuts turns at these, and takes a rollout without one for truncated.
        given = listed((self.args.generation_kwargs or {}).get("eos_token_id"))
        self.eos_token_ids: list[int] = list(dict.fromkeys([*self.eos_token_ids, *given]))

    @contextmanager
    def _engine(self, seeds: list[int] | None, tails: Sequence[Tail] | None = None) -> Iterator[Engine]:
        """The engine that samples the turns of a batch; if generation is collective, all ranks use it together.

        `tails`: what to score after each context of a rollout. Only an engine that keeps contexts does this.
        """
        with self._awake():
            if self.use_vllm and self.args.stream_turns and can_stream(self.vllm_generation):
                with VLLMStream(self.vllm_generation, seeds) as stream:
                    yield stream
            elif self._keeps_contexts:
                with self._unwrapped_model() as model:
                    sampling = self._sampling_of(model)
                    assert isinstance(sampling, Sampling)
                    yield TransformersStream(
                        model,
                        sampling,
                        seeds,
                        token_budget=self.args.sampling_token_budget,
                        device=self.accelerator.device,
                        most_rows=self.args.sampling_batch_size,
                        tails=tails,
                        temperature=self.temperature,
                    )
            else:
                ranks = self._ranks if self._samples_together else None
                yield LockStep(lambda requests: self._sample(requests, None, {}, 1), ranks, seeds)

    @cached_property
    def _keeps_contexts(self) -> bool:
        """Whether what the policy has read is kept while tools are called. Decided once, by all ranks together."""
        args = self.args
        if self.use_vllm or self.use_transformers_continuous_batching or not args.stream_turns:
            return False
        if self._dist.is_fsdp or (self._dist.is_zero3 and not args.ds3_gather_for_generation):
            return False  # each forward gathers weights, so that all ranks have to make it
        with self._unwrapped_model() as model:
            obstacle = self._ranks.first_text(self._obstacle_to_keeping(model))
        if obstacle is not None:
            logger.info(f"Turns are sampled by `generate`, which reads each context in full, because {obstacle}.")
        return obstacle is None

    def _obstacle_to_keeping(self, model: nn.Module) -> str | None:
        if obstacle := obstacle_to_keeping(model):
            return obstacle
        if isinstance(sampling := self._sampling_of(model), str):
            return sampling
        error = keeping_error(model, self.accelerator.device)  # tried with the real weights
        if not error <= keeping_tolerance(training_unit(self.accelerator, base_model(model))):  # NaN is no agreement
            return f"log-probabilities differ by {error:.2g} from those of contexts read from scratch"
        return None

    @contextmanager
    def _unwrapped_model(self) -> Iterator[nn.Module]:
        """The model as the parent unwraps it to generate, not compiled: contexts have a new length at each token."""
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as model:
            yield uncompiled(model)

    def _sampling_of(self, model: nn.Module) -> Sampling | str:
        return sampling_of(base_model(model), self.generation_config, self.eos_token_ids)

    @property
    def _samples_together(self) -> bool:
        """Whether sampling on one rank needs the others: they gather weights, or share an engine."""
        server = self.use_vllm and self.vllm_mode == "server"
        parallel = self.use_vllm and self.vllm_mode == "colocate" and self.args.vllm_tensor_parallel_size > 1
        sharded = not self.use_vllm and (self._dist.is_zero3 or self._dist.is_fsdp)
        return self._ranks.number > 1 and (server or parallel or sharded)

    def _sample(self, requests: list[Request], *args: Any, **kwargs: Any) -> tuple:
        """Sample a turn for each request. Ranks that sample together have equal numbers of requests, so of parts."""
        size = self.args.sampling_batch_size or len(requests)
        parts = [
            self._sample_at_once(requests[start : start + size], *args, **kwargs)
            for start in range(0, len(requests), size)
        ]
        ids, logprobs = ([row for part in of_parts for row in part or []] for of_parts in zip(*parts, strict=True))
        return ids, logprobs or None

    def _sample_at_once(self, requests: list[Request], *args: Any, **kwargs: Any) -> tuple:
        """Sample these requests together, with the parent's engine."""
        contexts, seeds, _ = [list(of_all) for of_all in zip(*requests, strict=True)]
        model = base_model(self.accelerator.unwrap_model(self.model_wrapped))
        with own_draws(model, None if None in seeds else seeds), self._turns_of_at_most(most_tokens(requests)):
            completion_ids, logprobs = super()._generate_single_turn(contexts, *args, **kwargs)
        # An engine that returns no token has ended the turn immediately; the parent fails on the empty list.
        if logprobs is not None:
            logprobs = [row if ids else [None] for row, ids in zip(logprobs, completion_ids, strict=True)]
        return [ids or [self._tokenizer.eos_token_id] for ids in completion_ids], logprobs

    @contextmanager
    def _turns_of_at_most(self, tokens: int | None) -> Iterator[None]:
        """Limit the turns of the parent's engine: late in a rollout there is no room for turns of the usual length."""
        if tokens is None:
            yield
        elif self.use_vllm:
            generation = self.vllm_generation
            given = generation.generation_kwargs
            limit = min(tokens, given.get("max_tokens", generation.max_completion_length))
            generation.generation_kwargs = {**given, "max_tokens": max(limit, given.get("min_tokens", 0))}
            try:
                yield
            finally:
                generation.generation_kwargs = given
        else:
            limit = self.generation_config.max_new_tokens
            self.generation_config.max_new_tokens = tokens if limit is None else min(tokens, limit)
            try:
                yield
            finally:
                self.generation_config.max_new_tokens = limit

    @property
    def _ends(self) -> Ends:
        return Ends.of(self.eos_token_ids, self._tokenizer.pad_token_id, self.args.generation_kwargs)

    # ---- vLLM

    def _context_limit(self) -> ContextLimit:
        """The limit of what the engine reads. All ranks ask together."""
        return context_limit(self.vllm_generation if self.use_vllm else None, self.model.config, self._ranks)

    def forget_weights(self) -> None:
        """Make sure that vLLM gets the policy's weights before it samples again, whatever their step.

        TRL assumes that the weights of a step are those it pushed at that step. Others may have been loaded since: the
        best ones at the end of training, a checkpoint's, a user's.
        """
        if self.use_vllm:
            self._last_loaded_step = -1

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Keep a colocated vLLM ready, with the policy's current weights, for all turns of a batch of rollouts."""
        if not (self.use_vllm and self.vllm_mode == "colocate"):
            yield
            return
        stale = self.state.global_step != self._last_loaded_step
        with awake(self.vllm_generation, self._push_weights, stale=stale):
            yield

    def _push_weights(self) -> None:
        with profiling_context(self, "sync_weights"):
            self.vllm_generation.sync_weights()
        self._last_loaded_step = self.state.global_step
