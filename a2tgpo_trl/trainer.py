"""A2TGPOTrainer: wires turns, information gain, credit and loss into TRL's GRPO training loop.

    rollout -> turns -> gain pass -> [old log-probs] -> rewards, outcome advantages (parent) -> credit
    loss: log-probs (parent) -> turn ratio -> clipped surrogate and aggregation (parent)

No mathematics here: what is computed stands in the pure modules, what is trained stands in the parent. The parent is
given other inputs (advantages per token, a clip range per token, old log-probabilities that make its token ratio the
turn's), so that its aggregations, KL, entropy, clipping and corrections stay its own.
"""

import inspect
import math
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.data_utils import is_conversational
from trl.models.utils import disable_gradient_checkpointing

from .config import WITHOUT_CLIP_RANGE, A2TGPOConfig
from .credit import GAIN_FLOOR
from .credit.credit_pass import TurnCredit
from .credit.methods import identity_of
from .credit.metrics import floor_metrics
from .credit.turn_rewards import TurnReward
from .credit.uninformative import uninformative_groups
from .dropout import settle_dropout
from .errors import RunStopped
from .information_gain.answers import used_answers
from .information_gain.gain_pass import GainPass
from .information_gain.metrics import gain_metrics
from .information_gain.packed_attention import length_matters, positions_are_relative
from .information_gain.rounding import EXACT, training_unit
from .information_gain.values import Rollouts, TurnScores, information_gain
from .launch.launched import check_launch
from .loss import ratio_metrics, ratio_reference, ratio_sums
from .models import base_model
from .ranks import Ranks
from .report.nothing_to_learn import NothingToLearn
from .resume.trainer import Resumable
from .rollout.answers import Answer, find_answer, rows_with_answers
from .rollout.checks import (
    check_best_metric,
    check_one_sequence,
    check_tools,
    checked_rollout_func,
    complete_args,
)
from .rollout.engines import Ends, Engine, LockStep, Request, Seeds, most_tokens
from .rollout.environments import Environments
from .rollout.padding import Padding, padding_of, trimmed
from .rollout.records import make_records, read_off
from .rollout.resampling import Resampler
from .rollout.rounds import RoundLog
from .rollout.sampler_gap import GapWatch, sampler_gap_metrics, sampler_gap_sums, warn_of_incomparable
from .rollout.seeds import left_as_it_was, own_draws, seed_of
from .rollout.tally import Tally
from .rollout.tool_loop import ToolLoop, make_runner
from .rollout.vllm_engine import VLLMStream, awake, can_stream, forget_weights
from .turns import count_turns, to_tokens, turn_index, turn_metrics


class A2TGPOTrainer(Resumable):
    """
    Trainer for Agentic Turn-Group Policy Optimization with Adaptive Turn-level Clipping (A2TGPO).

    Differences from [`~trl.GRPOTrainer`]:

    - the data set has a column with the ground-truth answer (`A2TGPOConfig.answer_column`), or environments say it;
    - after each rollout the policy scores that answer at every turn boundary, and each turn is credited with what it
      gained, beside the outcome advantage of the whole rollout;
    - the importance ratio is that of the turn, and its clip range follows the turn's gain.

    - `A2TGPOConfig.credit` names the method: A2TGPO, or one of those it is to be compared with.

    Takes the arguments of [`~trl.GRPOTrainer`], with an [`A2TGPOConfig`] for `args`, and `turn_reward_funcs`:
    functions from the record of a rollout (see `records.py`) to one number a turn. Those without a weight in
    `A2TGPOConfig.turn_rewards`, which goes by their names, have 1.

    Example:

    ```python
    >>> trainer = A2TGPOTrainer(
    ...     model="Qwen/Qwen3-0.6B",
    ...     reward_funcs=exact_match,
    ...     args=A2TGPOConfig("out"),
    ...     train_dataset=dataset,  # columns "prompt" and "answer"
    ...     tools=[search],
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["trl", "a2tgpo"]
    _name = "A2TGPO"
    _paper = {
        "title": "A2TGPO: Agentic Turn-Group Policy Optimization with Adaptive Turn-level Clipping",
        "id": "2605.06200",
        "citation": textwrap.dedent("""\
            @article{chen2026a2tgpo,
                title        = {{A$^2$TGPO: Agentic Turn-Group Policy Optimization with Adaptive Turn-level Clipping}},
                author       = {Dingwei Chen and Zefang Zong and Zhipeng Ma and Leo Luo and Yang Li and Chengming Li and Peng Chen and Jie Jiang},
                year         = 2026,
                eprint       = {arXiv:2605.06200},
            }"""),  # noqa: E501
    }

    args: A2TGPOConfig
    rollout_func: Callable[..., dict[str, Any]] | None
    _buffered_inputs: list[dict[str, Any]] | None  # micro-batches of the rollouts that are trained on
    beta: float
    vllm_importance_sampling_correction: bool
    # The parent's two numbers; tensors of one entry per token while the loss runs.
    epsilon_low: float | Tensor
    epsilon_high: float | Tensor

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: A2TGPOConfig | None = None,
        *positional: Any,
        turn_reward_funcs: Sequence[TurnReward] | Mapping[str, TurnReward] = (),
        **keywords: Any,
    ):
        args = complete_args(model, args)
        # What passes between the parent's steps. None outside them.
        self._rows: list[dict[str, Any]] | None = None
        self._answers: list[Answer] | None = None
        self._turn_scores: TurnScores | None = None
        self._old_logps: list[Tensor] | None = None
        self._judged: tuple[list[dict[str, Any]], list, list, Tensor] | None = None
        self._rollouts: Rollouts | None = None
        self._dull_G: Tensor | None = None
        self._loss_inputs: dict[str, Any] | None = None
        # Called with the records of each batch of rollouts, in training and in evaluation, on each rank with its own.
        self.on_rollouts: Callable[[list[dict[str, Any]]], None] | None = None
        given = inspect.signature(GRPOTrainer.__init__).bind(self, model, reward_funcs, args, *positional, **keywords)
        tools, factory = given.arguments.get("tools"), given.arguments.get("environment_factory")
        if tools:
            check_tools(tools)
        check_best_metric(args, given.arguments.get("eval_dataset"))
        environments = Environments(make_runner(args)) if tools or factory is not None else None
        if environments is not None and factory is not None:
            given.arguments["environment_factory"] = environments.guarded(factory)  # the parent makes the first ones
        super().__init__(*given.args[1:], **given.kwargs)
        if self._is_vlm:
            raise ValueError(
                "Vision-language models are not supported: a probe carries no images. Pass a tokenizer (not a "
                "processor) as processing_class to train the text model alone."
            )
        check_launch(self.args, self.accelerator)
        settle_dropout(
            self.model,
            args.importance_sampling_level,
            disabled=args.disable_dropout,
            sampler_is_corrected=args.use_vllm and args.vllm_importance_sampling_correction,
        )
        self._let_ddp_miss_gradients()
        if args.use_transformers_continuous_batching and self.is_fsdp_enabled and (args.bf16 or args.fp16):
            raise ValueError(
                "use_transformers_continuous_batching casts the weights to sample with them, which cannot be undone "
                "where FSDP has split them. Sample by vLLM (use_vllm), or leave it out."
            )
        if not self.use_vllm and self.rollout_func is None:
            check_one_sequence(self.generation_config, base_model(self.model).generation_config, args.seeds_rollouts)
        # Ratios wider than a token reach the parent's loss through `ratio_reference`, as token ratios.
        self.importance_sampling_level = "token"
        self._tool_loop = None if environments is None else ToolLoop(self, environments)
        if self.rollout_func is not None:
            self.rollout_func = checked_rollout_func(self.rollout_func, self._tokenizer.eos_token_id)
        has_data = given.arguments.get("train_dataset") is not None
        self._gain_pass = GainPass(self, has_data) if args.uses_gain else None
        self._credit = TurnCredit(self, turn_reward_funcs)
        if args.seeded_rollouts and (self.rollout_func is not None or (self.use_vllm and self._tool_loop is None)):
            raise ValueError(
                "seeded_rollouts=True has no effect on a rollout_func, nor on vLLM without tools. Leave it out."
            )
        # What the draws of rollouts come from, with the step and the place of each.
        self.rollout_seed = args.seed
        self.evaluated_rollouts = 0  # that came before, in an evaluation
        self._evaluated_set = ""  # its name, if there are several
        self._round = 0
        self.allows_changes, self.seeds_rollouts = args.resume_changed, args.seeds_rollouts
        self._lessons = NothingToLearn(lambda: self._interruption.agreed)
        self.add_callback(self._lessons)
        self._gap_watch = GapWatch()
        warn_of_incomparable(args)

    def _let_ddp_miss_gradients(self) -> None:
        """Of a multimodal checkpoint the text model is trained: what reads images gets no gradient, and DDP waits."""
        multimodal = self.model.config.get_text_config() is not self.model.config
        reentrant = (self.args.gradient_checkpointing_kwargs or {}).get("use_reentrant")  # fails with such a search
        if multimodal and self.args.ddp_find_unused_parameters is None and not reentrant:
            self.accelerator.ddp_handler.find_unused_parameters = True

    @property
    def turn_reward_names(self) -> list[str]:
        """Of the rewards of single turns that count."""
        return self._credit.rewards.names

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        self.evaluated_rollouts = 0
        self._evaluated_set = metric_key_prefix.partition("eval_")[2]
        self.forget_weights()
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The parent's, with the metrics of one of several evaluation sets by its name: `eval_easy_reward`."""
        if self.model.training:
            super().log(logs, start_time)
            return
        metrics = self._metrics["eval"]
        if self._evaluated_set:
            named = {f"{self._evaluated_set}_{name}": values for name, values in metrics.items()}
            metrics.clear()
            metrics.update(named)
        super().log(logs, start_time)
        # What nobody scored is None in the log. Who follows a metric compares it, and NaN is never the best.
        logs.update({name: math.nan for name, value in logs.items() if value is None})

    # ---- what a run that is resumed asks for

    def settings_of_run(self, may_change: Collection[str] = ()) -> dict[str, Any]:
        return {
            **super().settings_of_run({*may_change, *self.args.MAY_CHANGE}),
            "credit": identity_of(self.args.credit),
            "turn rewards": self.turn_reward_names,
        }

    def extra_state(self) -> dict[str, Any]:
        gain_pass = self._gain_pass
        return {"packing": None if gain_pass is None else [gain_pass.packing, gain_pass.packing_tried]}

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        if self._gain_pass is not None and saved["packing"] is not None:
            self._gain_pass.packing, self._gain_pass.packing_tried = saved["packing"]

    def forget_weights(self) -> None:
        forget_weights(self)

    # ---- generation and scoring

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if self.args.answer_column not in self._signature_columns:
            self._signature_columns.append(self.args.answer_column)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._mode = "train" if self.model.training else "eval"
        return self._train_batch(inputs) if self._mode == "train" else self._evaluate_batch(inputs)

    def _train_batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Rolled out and credited; what teaches nothing, again."""
        self._round = 0
        resampler = Resampler(
            Ranks(self.accelerator),
            limit=self.args.resample_limit,
            group_size=self.num_generations,
            pad_id=self._tokenizer.pad_token_id,
            multiple=self.pad_to_multiple_of,
        )
        log, outcomes = RoundLog(self._metrics["train"]), []

        def roll_out(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], Tensor]:
            rolled_out = self._roll_out(rows)
            log.end_round(len(rows))
            outcomes.append(self._outcomes_N)
            return rolled_out

        output, metrics = resampler.run(roll_out, inputs)
        log.end_batch()
        if "groups/teach_nothing" in metrics:
            self._lessons.see(metrics["groups/teach_nothing"], torch.cat(outcomes).nanmean().item())
        if self.args.resample_limit:
            of_groups = [outcomes[number].view(-1, self.num_generations)[i] for number, i in resampler.sources]
            metrics["groups/reward"] = torch.cat(of_groups).nanmean().item()
        self._log_scalars("train", metrics)
        return output

    def _evaluate_batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Rolled out and scored, and nothing else: an evaluation has no loss, and makes no forward for one."""
        corrects, beta = self.vllm_importance_sampling_correction, self.beta
        self.vllm_importance_sampling_correction, self.beta = False, 0.0
        try:
            with self._between_steps():
                output = self._sample_and_score(inputs)
                self._log_turns(output)
        finally:
            self.vllm_importance_sampling_correction, self.beta = corrects, beta
        self.evaluated_rollouts += len(inputs) * self.accelerator.num_processes
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        with torch.no_grad():
            self._prepare_inputs(inputs)
        return None, None, None

    def _roll_out(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], Tensor]:
        """The parent's generation and scoring, credited, and which of all ranks' groups teach nothing."""
        self._round += 1
        with self._between_steps():
            output = self._assign_credit(self._sample_and_score(inputs))
            assert self._dull_G is not None
            return output, self._dull_G

    def _sample_and_score(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = [dict(row) for row in inputs]  # the parent writes what a rollout function returns into them
        if self._tool_loop is not None:
            self._tool_loop.begin_batch(inputs)
        output = super()._generate_and_score_completions(self._rows)
        self._read_records()
        if self._tool_loop is not None:
            self._end_tool_loop(self._tool_loop)
        return output

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """What passes between the parent's steps is forgotten after the batch, however it ends."""
        try:
            yield
        finally:
            self._rows = self._answers = self._rollouts = self._judged = None
            self._turn_scores = self._old_logps = self._dull_G = None

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple:
        if self._tool_loop is not None and self.tools:  # an environment need not have any
            # The parent asks for the first turns and hands them to its tool loop. Ours samples those as well.
            return [[self._tokenizer.eos_token_id]] * len(prompt_ids), None
        seeds = Seeds(self._rollout_seeds(prompt_ids))
        return self._sample([Request(ids, seeds.next(i)) for i, ids in enumerate(prompt_ids)], *args, **kwargs)

    def _sample(self, requests: list[Request], *args: Any, **kwargs: Any) -> tuple:
        """One turn for each request. Ranks that sample together have as many requests, so they make as many parts."""
        size = self.args.sampling_batch_size or len(requests)
        parts = [
            self._sample_at_once(requests[start : start + size], *args, **kwargs)
            for start in range(0, len(requests), size)
        ]
        ids, logprobs = ([row for part in of_parts for row in part or []] for of_parts in zip(*parts, strict=True))
        return ids, logprobs or None

    def _sample_at_once(self, requests: list[Request], *args: Any, **kwargs: Any) -> tuple:
        """By the parent's engine."""
        contexts, seeds, _ = [list(of_all) for of_all in zip(*requests, strict=True)]
        model = base_model(self.accelerator.unwrap_model(self.model_wrapped))
        with own_draws(model, None if None in seeds else seeds), self._turns_of_at_most(most_tokens(requests)):
            completion_ids, logprobs = super()._generate_single_turn(contexts, *args, **kwargs)
        # An engine that returns no token has ended the turn at once; the parent fails on the empty list.
        if logprobs is not None:
            logprobs = [row if ids else [None] for row, ids in zip(logprobs, completion_ids, strict=True)]
        return [ids or [self._tokenizer.eos_token_id] for ids in completion_ids], logprobs

    @contextmanager
    def _turns_of_at_most(self, tokens: int | None) -> Iterator[None]:
        """Let the parent's engine sample no more than this: late in a rollout there is no room for its usual turns."""
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

    def _tool_call_loop(self, prompts: list, prompt_ids: list[list[int]], *_: Any) -> tuple:
        assert self._tool_loop is not None
        if not is_conversational({"prompt": prompts[0]}):
            raise ValueError(
                "Tools need conversational prompts: lists of messages with a role and a content. Make them of the "
                "texts with dataset.map, or train without tools."
            )
        with self._engine(self._rollout_seeds(prompt_ids)) as engine:
            rollouts = self._tool_loop.run(prompt_ids, engine, self._ends, self._mode == "train")
        tally = Tally.of(rollouts)
        return (
            [rollout.mask for rollout in rollouts],
            [rollout.messages for rollout in rollouts],
            [rollout.completion_ids for rollout in rollouts],
            [rollout.logprobs for rollout in rollouts] if self.use_vllm else None,
            tally.made,
            tally.failed,
            [[] for _ in rollouts],  # images, which text models do not read
        )

    @property
    def _ends(self) -> Ends:
        return Ends.of(self.eos_token_ids, self._tokenizer.pad_token_id, self.args.generation_kwargs)

    def _rollout_seeds(self, prompt_ids: list[list[int]]) -> list[int] | None:
        """A seed for each of this rank's rollouts, the same on however many ranks the batch is spread.

        Evaluations draw the same at every step, so that two of them differ by the policy alone: the place of a rollout
        is that in the whole evaluation.
        """
        if not self.args.seeds_rollouts:
            return None
        first = self._local_rows(len(prompt_ids)).start
        places = list(range(first, first + len(prompt_ids)))
        batch = self._step // (self.args.steps_per_generation * self.num_iterations)  # since the run began
        when: tuple[int, ...] = (self.state.global_step, batch, self._round)
        if self._mode == "eval":
            when, places = (), [self.evaluated_rollouts + place for place in places]
        return [
            seed_of(self.rollout_seed, self._mode, *when, place, ids)
            for place, ids in zip(places, prompt_ids, strict=True)
        ]

    @contextmanager
    def _engine(self, seeds: list[int] | None) -> Iterator[Engine]:
        """What samples the turns of a batch: where generation is collective, all ranks together."""
        with awake(self):
            if self.use_vllm and self.args.stream_turns and can_stream(self.vllm_generation):
                with VLLMStream(self.vllm_generation, seeds) as stream:
                    yield stream
            else:
                ranks = Ranks(self.accelerator) if self._samples_together else None
                yield LockStep(lambda requests: self._sample(requests, None, {}, 1), ranks, seeds)

    @property
    def _samples_together(self) -> bool:
        """Whether sampling on one rank needs the others: they gather weights, or share an engine."""
        distributed = self.accelerator.num_processes > 1
        server = self.use_vllm and self.vllm_mode == "server"
        parallel = self.use_vllm and self.vllm_mode == "colocate" and self.args.vllm_tensor_parallel_size > 1
        sharded = not self.use_vllm and (self._dist.is_zero3 or self._dist.is_fsdp)
        return distributed and (server or parallel or sharded)

    def _end_tool_loop(self, loop: ToolLoop) -> None:
        """Metrics of the batch; and if a tool has failed for good, on all ranks together, the end of the run."""
        mode = self._mode
        self._log_scalars(mode, loop.metrics(training=mode == "train"))
        trouble = loop.end_batch()
        if trouble is None:
            return
        saved = ""
        if self.is_in_train and self.state.global_step > 0:  # also where an evaluation in between has found it
            self._save_checkpoint(self.model, trial=None)
            saved = (
                f" What was learnt is in {self._checkpoint_now()}: go on from there when that is mended "
                "(resume_from_checkpoint)."
            )
        raise RunStopped(f"{trouble}{saved}")

    def _generate(self, prompts: list) -> tuple:
        self._answers = self._find_answers()
        accepted = self._accepted_answers(self._answers)  # before anything is sampled in vain
        with left_as_it_was(self.model):
            rollout = super()._generate(prompts)
        prompt_ids, completion_ids, tool_mask = rollout[:3]
        mask = tool_mask if tool_mask is not None else [[1] * len(ids) for ids in completion_ids]
        self._rollouts = Rollouts(prompt_ids, completion_ids, mask)
        if self._mode == "eval":
            self._old_logps = self._placeholders(completion_ids)  # an evaluation has no loss
        elif self._gain_pass is not None:
            scores, metrics = self._gain_pass.run(self._rollouts, accepted, self._parent_wants_old_logps)
            self._turn_scores, self._old_logps = scores, scores.logps
            self._log_scalars("train", metrics)
        sampled_logps = rollout[4]
        if self._mode == "train" and sampled_logps is None and self._scores_trimmed:
            self._old_logps = self._placeholders(completion_ids)  # which nothing compares with those of the sampler
        return rollout

    def _placeholders(self, completion_ids: list[list[int]]) -> list[Tensor]:
        """In place of the parent's pass by the policy as it was, where nobody reads that."""
        return [torch.zeros(len(ids), device=self.accelerator.device) for ids in completion_ids]

    def _find_answers(self) -> list[Answer]:
        """The answers to the rows of a batch, whose environments have been reset."""
        assert self._rows is not None
        environments = self.environments or [None] * len(self._rows)
        return [
            find_answer(row, self.args.answer_column, environment, self._has_failed_to_reset(environment))
            for row, environment in zip(self._rows, environments, strict=True)
        ]

    def _has_failed_to_reset(self, environment: Any) -> bool:
        return self._tool_loop is not None and self._tool_loop.environments.failed(environment) is not None

    def _accepted_answers(self, answers: Sequence[Answer]) -> list[list[str]]:
        """Those that are scored; none where nothing is."""
        if self._gain_pass is None or self._mode == "eval":
            return []
        return [used_answers(answer.text, self.args.answer_aliases, answer.where) for answer in answers]

    @property
    def _parent_wants_old_logps(self) -> bool:
        """The parent's own condition for a pass over the old policy; a contract test holds the two together."""
        return not self._on_policy or (self.use_vllm and self.vllm_importance_sampling_correction)

    @property
    def _on_policy(self) -> bool:
        """Whether all micro-batches of a batch of rollouts are trained on before the policy changes."""
        return self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) == 0

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._old_logps is not None:
            # The parent's first request after generation: the gain pass has already answered it.
            logps = pad_sequence(self._old_logps, batch_first=True)
            self._old_logps = None
            return pad(logps, (0, logits_to_keep - logps.size(1))), None, None
        if self._trims_padding and kwargs.get("batch_size"):
            return self._logps_of_chunks(model, input_ids, attention_mask, logits_to_keep, kwargs["batch_size"])
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if self._loss_inputs is not None:
            logps = self._set_turn_ratio(self._loss_inputs, logps)
        return logps, entropies, aux_loss

    # ---- padding

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self._trims_padding or self._buffered_inputs is None or self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = [self._trimmed(batch) for batch in self._buffered_inputs]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    @property
    def _trims_padding(self) -> bool:
        """Whether micro-batches are no wider than their rows. Those of TRL's GRPO, to the bit, keep their padding.

        So do those of a model whose tokens depend on the width of their row: old and reference log-probabilities are
        of other micro-batches than the loss.
        """
        return not self.args.trains_as_grpo and not length_matters(base_model(self.model))

    def _padding_of(self, prompt_mask: Tensor, completion_mask: Tensor) -> Padding:
        relative = positions_are_relative(base_model(self.model))
        return padding_of(prompt_mask, completion_mask, left=relative, multiple=self.pad_to_multiple_of)

    def _trimmed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A micro-batch without its padding, and with old log-probabilities of the very forward that the loss makes.

        In 16 bits they follow the width of the row by more than a turn's clip range.
        """
        batch = trimmed(batch, self._padding_of(batch["prompt_mask"], batch["completion_mask"]))
        if "old_per_token_logps" not in batch:
            return batch
        if self._on_policy:
            del batch["old_per_token_logps"]  # without them, the parent takes those of the loss itself
        elif self._scores_trimmed:
            ids, mask = (
                torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], dim=1) for name in ("ids", "mask")
            )
            with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                batch["old_per_token_logps"], _, _ = super()._get_per_token_logps_and_entropies(
                    self.model, ids, mask, batch["completion_ids"].size(1)
                )
        return batch

    def _logps_of_chunks(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, batch_size: int
    ) -> tuple[Tensor, None, None]:
        """The parent's pass over a whole batch, each chunk as wide as its own rows."""
        found = []
        for ids, mask in zip(input_ids.split(batch_size), attention_mask.split(batch_size), strict=True):
            padding = self._padding_of(mask[:, :-logits_to_keep], mask[:, -logits_to_keep:])
            kept = logits_to_keep - padding.right
            logps, _, _ = super()._get_per_token_logps_and_entropies(model, padding.cut(ids), padding.cut(mask), kept)
            found.append(pad(logps, (0, padding.right)))
        return torch.cat(found), None, None

    @property
    def _scores_trimmed(self) -> bool:
        """Whether old log-probabilities of a batch are taken again once its micro-batches are there."""
        coarse = training_unit(self.accelerator, self.model) > EXACT
        return coarse and self._trims_padding and not self._on_policy

    # ---- credit

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        assert self._answers is not None
        inputs = rows_with_answers(inputs, self._answers)  # `reset` has got them as they are
        rewards_per_func_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if rewards_per_func_NF.isinf().any():
            named = [n for n, f in zip(self.reward_func_names, rewards_per_func_NF.T, strict=True) if f.isinf().any()]
            raise ValueError(f"Rewards must be finite, or None; {', '.join(named)} returned an infinite one.")
        if self._tool_loop is not None:
            excluded = self._tool_loop.unscored(len(inputs))
            excluded_N = self.accelerator.gather(torch.tensor(excluded, device=rewards_per_func_NF.device))
            rewards_per_func_NF = rewards_per_func_NF.masked_fill(excluded_N.unsqueeze(1), torch.nan)
        # The parent gives a rollout that no reward function scored an advantage of 0; it gets no gain either.
        self._unscored_N = rewards_per_func_NF.isnan().all(dim=1)
        weighted_NF = rewards_per_func_NF * self.reward_weights.to(rewards_per_func_NF.device)
        self._outcomes_N = weighted_NF.nansum(dim=1).masked_fill(self._unscored_N, torch.nan)
        self._judged = (inputs, prompts, completions, rewards_per_func_NF[self._local_rows(len(inputs))])
        return rewards_per_func_NF

    def _read_records(self) -> None:
        """What happened, to those who want to know: turn rewards, and who watches."""
        if not self._credit.reads_records and self.on_rollouts is None:
            return
        records = self._make_records()
        if self._credit.reads_records:
            self._credit.read(records)
        if self.on_rollouts is not None:
            self.on_rollouts(records)

    def _make_records(self) -> list[dict[str, Any]]:
        assert self._judged is not None
        values = None if self._turn_scores is None else self._turn_scores.values_BK
        return make_records(*self._judged, self.reward_func_names, values, self._happened())

    def _happened(self) -> list[dict[str, Any]] | None:
        """What the loop over turns says of each rollout, or what tokens say where a rollout function ran it."""
        if self.rollout_func is None:
            rollouts = [] if self._tool_loop is None else self._tool_loop.rollouts
            return [rollout.record for rollout in rollouts] or None
        assert self._rollouts is not None
        tokens = zip(self._rollouts.prompt_ids, self._rollouts.completion_ids, self._rollouts.model_mask, strict=True)
        return [read_off(*of_rollout, self._tokenizer.decode, self._ends.ids) for of_rollout in tokens]

    def _local_rows(self, number: int) -> slice:
        """This rank's rows of a gathered tensor to which each rank gave so many."""
        first = self.accelerator.process_index * number
        return slice(first, first + number)

    def _turns_of(self, output: dict[str, Any]) -> tuple[Tensor, int, Tensor]:
        """The turn of each token on this rank, the most turns that any rank's rollouts have, and how many each has."""
        turn_BT = turn_index(output["completion_mask"] * output.get("tool_mask", 1))
        num_turns_N = self.accelerator.gather(turn_BT.amax(dim=1) + 1)
        return turn_BT, Ranks(self.accelerator).max(count_turns(turn_BT)), num_turns_N

    def _log_turns(self, output: dict[str, Any]) -> None:
        """How many turns rollouts have that are not trained on, and what single turns earned."""
        _, num_turns, num_turns_N = self._turns_of(output)
        self._log_scalars("eval", turn_metrics(num_turns_N[num_turns_N > 0]))
        self._log_scalars("eval", self._credit.metrics(num_turns_N.masked_fill(self._unscored_N, 0), num_turns))
        self._show_advantages(num_turns_N.new_zeros(len(num_turns_N), 0), torch.zeros_like(num_turns_N))

    def _show_advantages(self, advantages_NK: Tensor, num_turns_N: Tensor) -> None:
        """In the table of `log_completions`: that of each turn, and their mean. NaN for a rollout that teaches none.

        The parent has shown its own, of whole rollouts, before they were credited.
        """
        if not self.log_completions:
            return
        of_turns = [row[:number] for row, number in zip(advantages_NK.tolist(), num_turns_N.tolist(), strict=True)]
        shown = self._logs["advantages"]
        for _ in range(min(len(of_turns), len(shown))):
            shown.pop()
        shown.extend(sum(row) / len(row) if row else math.nan for row in of_turns)
        self._logs["extra"]["turn_advantages"].extend([round(value, 4) for value in row] for row in of_turns)

    def _assign_credit(self, output: dict[str, Any]) -> dict[str, Any]:
        """Replace the parent's advantage per rollout by one per token, and add turn index and clip scale."""
        turn_BT, num_turns, num_turns_N = self._turns_of(output)
        local = self._local_rows(len(turn_BT))

        outcome_N = self.accelerator.gather(output["advantages"])
        group_ids_N = torch.arange(len(outcome_N), device=outcome_N.device) // self.num_generations
        values_NV = self._gather_values(turn_BT, num_turns)
        # Rollouts out of the loss (truncated and masked, or unscored) are out of the statistics as well.
        in_loss_N = (num_turns_N > 0) & ~self._unscored_N
        values_NV = values_NV.masked_fill(~in_loss_N.unsqueeze(1), torch.nan)
        gains_NK = information_gain(values_NV, num_turns)
        evidence, metrics = self._credit.evidence(
            gains_NK,
            self._outcomes_N,
            outcome_N,
            num_turns_N.masked_fill(~in_loss_N, 0),
            group_ids_N,
            GAIN_FLOOR if self._turn_scores is None else self._turn_scores.gain_floor,
        )
        advantages_NK, scale_NK = self._credit.advantages(evidence), self._credit.clip_scale(evidence)
        self._dull_G = uninformative_groups(evidence, self._credit.advantages, self._credit.strength)
        self._show_advantages(advantages_NK, evidence.num_turns_N)
        self._log_scalars("train", metrics)
        self._log_scalars("train", turn_metrics(num_turns_N[num_turns_N > 0]))
        if self.args.uses_gain:
            self._log_scalars("train", gain_metrics(values_NV, gains_NK, scale_NK, group_ids_N))
            self._log_scalars("train", floor_metrics(gains_NK, group_ids_N, evidence.gain_floor))
        self._log_sampler_gap(output, turn_BT, num_turns)
        output["advantages"] = to_tokens(advantages_NK[local], turn_BT)
        output["clip_scale"] = to_tokens(scale_NK[local], turn_BT, fill=1.0)
        output["turn_index"] = turn_BT
        # With the batch, not on the trainer: an evaluation may come before a buffered batch is used up.
        # Every rollout may be out of the loss, which the parent divides by its tokens.
        output["num_items_in_batch"] = output["num_items_in_batch"].clamp(min=1)
        output["num_turns"] = torch.tensor(num_turns, device=turn_BT.device)
        return output

    def _log_sampler_gap(self, output: dict[str, Any], turn_BT: Tensor, num_turns: int) -> None:
        if "sampling_per_token_logps" not in output or "old_per_token_logps" not in output:
            return
        logps_BT = (output["sampling_per_token_logps"], output["old_per_token_logps"])
        sums = sampler_gap_sums(*logps_BT, turn_BT, num_turns)
        metrics = sampler_gap_metrics(self.accelerator.reduce(sums, reduction="sum"))
        self._log_scalars("train", metrics)
        self._gap_watch.see(metrics)

    def _gather_values(self, turn_BT: Tensor, num_turns: int) -> Tensor:
        """Values of all ranks' rollouts, one column more than there are turns; all NaN where none were computed."""
        if self._turn_scores is None:
            values_BV = torch.full((len(turn_BT), 1), torch.nan, device=turn_BT.device)
        else:
            values_BV = self._turn_scores.values_BK.to(turn_BT.device)
        values_BV = pad(values_BV, (0, max(num_turns + 1 - values_BV.size(1), 0)), value=torch.nan)
        return self.accelerator.gather(values_BV.contiguous())

    def _log_scalars(self, mode: str, scalars: dict[str, float]) -> None:
        for name in sorted(scalars):
            self._metrics[mode][name].append(scalars[name])

    # ---- loss

    def _compute_loss(self, model, inputs: dict[str, Any]) -> Tensor:
        """The parent's loss, with the clip range of each turn for the two numbers it knows."""
        epsilon_low, epsilon_high = self.epsilon_low, self.epsilon_high
        self.epsilon_low = epsilon_low * inputs["clip_scale"]
        self.epsilon_high = epsilon_high * inputs["clip_scale"]
        self._loss_inputs = dict(inputs)
        try:
            return super()._compute_loss(model, self._loss_inputs)
        finally:
            self.epsilon_low, self.epsilon_high, self._loss_inputs = epsilon_low, epsilon_high, None

    def _set_turn_ratio(self, inputs: dict[str, Any], logps: Tensor) -> Tensor:
        """Between the parent's forward and its ratio: put in the old log-probs that make it the turn's."""
        old_logps = inputs.get("old_per_token_logps")
        old_logps = logps.detach() if old_logps is None else old_logps
        turn_BT = inputs["turn_index"]
        logps, reference = ratio_reference(logps, old_logps, turn_BT, self.args.importance_sampling_level)
        inputs["old_per_token_logps"] = reference
        with torch.no_grad():
            sums = ratio_sums(
                (logps - reference).exp(),
                inputs["advantages"],
                self.epsilon_low,
                self.epsilon_high,
                turn_BT,
                int(inputs["num_turns"]),
            )
        clips = self.loss_type not in WITHOUT_CLIP_RANGE
        self._log_scalars("train", ratio_metrics(self.accelerator.reduce(sums, reduction="sum"), clips))
        return logps
