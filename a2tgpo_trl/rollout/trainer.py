"""ToolTrainer: GRPO whose policy calls tools, over several turns, in a loop that cannot hang or mix rollouts up.

    rows -> environments reset -> first turns -> tool loop -> [answers found] -> rewards -> records -> batch

It works alone, with TRL's own credit and loss, and `A2TGPOTrainer` is built on it. The parent samples through its own
engines, calls reward functions and makes the batch; a `Batch` holds what passes between these steps.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.data_utils import is_conversational

from ..errors import RunStopped
from ..launch.launched import check_launch
from ..models import base_model, evaluation_mode
from ..tools.control import ControlText, SuffixWriter
from ..turns import count_turns, turn_index, turn_metrics
from .answers import Answer, Row, check_reward_arguments, find_answer, rows_with_answers
from .batch import Batch, Rollouts, Scored, Turns
from .checks import (
    check_best_metric,
    check_head,
    check_names,
    check_one_sequence,
    check_patience,
    check_tools,
    checked_rollout_func,
    complete_args,
)
from .engines import Request, Seeds, Tail
from .environments import Environments, environment_kinds
from .records import Record, make_records, read_off
from .sampler_gap import GapWatch, sampler_gap_metrics, sampler_gap_sums, warn_of_incomparable
from .sampling import SamplingTrainer
from .seeds import left_as_it_was, seed_of, seeded
from .settings import ToolConfig
from .tally import Tally
from .tool_loop import Start, ToolLoop, make_runner
from .trackers import log_to_wandb, without


class ToolTrainer(SamplingTrainer):
    """
    [`~trl.GRPOTrainer`] with its own tool loop: concurrent calls with time limits, failures that are told to the
    policy or excluded from the batch, a seed for each rollout, ranks with unequal numbers of turns, runs that resume
    after an interruption.

    Takes the arguments of [`~trl.GRPOTrainer`], with a [`ToolConfig`] for `args`.

    A training batch is made in this order. Each step is a method that a subclass may extend:

        _train_batch(rows)                   as many rounds of rollouts as the batch takes; here one
          _roll_out_batch(rows, round)       makes the `Batch` and drops it at the end, even after an exception
            _generate(prompts)               tokens of all turns, by `_tool_call_loop`; answers are known by now
            _calculate_rewards(...)          rewards of the whole rollouts
            _see_records(records)            passes on what happened, here to `on_rollouts`
            credit_batch(output, batch)      what is trained on: here the parent's advantages, unchanged
        _compute_loss(model, inputs)         the parent's loss

    An evaluation calls `_evaluate_batch` instead of `_train_batch` and ends with the records: it has no loss.

    Example:

    ```python
    >>> trainer = ToolTrainer("Qwen/Qwen3-0.6B", exact_match, ToolConfig("out"), dataset, tools=[search])
    >>> trainer.train()
    >>> records = trainer.roll_out(held_out_rows)
    ```
    """

    _tag_names = ["trl", "tools"]
    _name = "Tool GRPO"
    config_class: type[ToolConfig] = ToolConfig
    batch_class: type[Batch] = Batch

    args: ToolConfig
    rollout_func: Callable[..., dict[str, Any]] | None
    beta: float
    vllm_importance_sampling_correction: bool

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: ToolConfig | None = None,
        *positional: Any,
        **keywords: Any,
    ):
        args = complete_args(model, args, self.config_class)
        self._batch: Batch | None = None
        # Called with the records of each batch of rollouts, in training and in evaluation, on each rank with its own.
        self.on_rollouts: Callable[[list[Record]], None] | None = None
        given = inspect.signature(GRPOTrainer.__init__).bind(self, model, reward_funcs, args, *positional, **keywords)
        tools, factory = given.arguments.get("tools"), given.arguments.get("environment_factory")
        if tools:
            check_tools(tools)
        check_best_metric(args, given.arguments.get("eval_dataset"))
        environments = Environments(make_runner(args)) if tools or factory is not None else None
        if environments is not None and factory is not None:
            given.arguments["environment_factory"] = environments.guarded(factory)  # the parent makes the first ones
        super().__init__(*given.args[1:], **given.kwargs)
        if factory is not None:
            for together in self._env_tools.values():
                check_names(together)
        self._check_support()
        self._check_rewards()
        self._let_ddp_miss_gradients()
        self._tool_loop = None if environments is None else self._make_tool_loop(environments)
        if self.rollout_func is not None:
            self.rollout_func = checked_rollout_func(self.rollout_func, self._tokenizer.eos_token_id)
        # The seed of each rollout is made from this one, the step and the rollout's place.
        self.rollout_seed = args.seed
        self.evaluated_rollouts = 0  # by earlier batches of the same evaluation
        self._evaluated_set = ""  # its name, if there are several sets
        self.allows_changes, self.seeds_rollouts = args.resume_changed, args.seeds_rollouts
        self._gap_watch = GapWatch()
        warn_of_incomparable(args)

    def _check_support(self) -> None:
        """Refuse settings that neither the tool loop nor the parent would refuse in plain words."""
        args = self.args
        if self._is_vlm:
            raise ValueError(
                "Vision-language models are not supported: turns and probes carry no images. Pass a tokenizer (not a "
                "processor) as processing_class to train the text model alone."
            )
        check_head(base_model(self.model).get_output_embeddings())
        check_launch(args, self.accelerator)
        check_patience(args, self._ranks.number)
        if args.use_transformers_continuous_batching and self.is_fsdp_enabled and (args.bf16 or args.fp16):
            raise ValueError(
                "use_transformers_continuous_batching casts the weights for sampling, which cannot be undone where "
                "FSDP has sharded them. Sample with vLLM (use_vllm), or leave it out."
            )
        if (
            self.is_fsdp_enabled
            and self.accelerator.state.fsdp_plugin.fsdp_version == 1
            and isinstance(self.model, PeftModel)
        ):
            raise ValueError(
                "Adapters are not found under FSDP version 1. Set fsdp_version: 2 in Accelerate's configuration, as "
                "the configuration named fsdp2 does."
            )
        if not self.use_vllm and self.rollout_func is None:
            check_one_sequence(self.generation_config, base_model(self.model).generation_config, args.seeds_rollouts)
        calls_tools = bool(self.tools) or self.environment_factories is not None
        if args.seeded_rollouts and (self.rollout_func is not None or (self.use_vllm and not calls_tools)):
            raise ValueError(
                "seeded_rollouts=True has no effect with a rollout_func, or with vLLM without tools. Leave it out."
            )
        if calls_tools and self.rollout_func is not None:
            raise ValueError(
                "A rollout_func makes the tool calls of its rollouts itself. Give the tools to it and not to the "
                "trainer, or leave rollout_func out."
            )

    def _check_rewards(self) -> None:
        if self.environment_factories is not None or self.rollout_func is not None:
            return  # these add to what the data sets have
        evaluation = self.eval_dataset if isinstance(self.eval_dataset, Mapping) else {"evaluation": self.eval_dataset}
        for name, dataset in {"training": self.train_dataset, **evaluation}.items():
            columns = getattr(dataset, "column_names", None)  # those of a stream may be unknown
            if columns:
                check_reward_arguments(self.reward_funcs, name, columns, self.args.answer_column)

    def _let_ddp_miss_gradients(self) -> None:
        """Tell DDP not to wait for a multimodal checkpoint's image part: only the text model gets gradients."""
        multimodal = self.model.config.get_text_config() is not self.model.config
        reentrant = (self.args.gradient_checkpointing_kwargs or {}).get("use_reentrant")  # fails if DDP searches
        if multimodal and self.args.ddp_find_unused_parameters is None and not reentrant:
            self.accelerator.ddp_handler.find_unused_parameters = True

    def _make_tool_loop(self, environments: Environments) -> ToolLoop:
        if self.args.max_completion_length is None:
            raise ValueError(
                "max_completion_length must be a number where tools are called: without it, a rollout that babbles "
                "would hold up its batch until the model's context is full."
            )
        environments.batch = lambda: self.environments or []
        control = None
        if self.tools:  # an environment may have none
            template = self.chat_template or self._tokenizer.get_chat_template(tools=self.tools)
            write = SuffixWriter(self._tokenizer, self.chat_template, self.chat_template_kwargs)
            control = ControlText(self._tokenizer, template, write, write.before(self.tools[0].__name__))
        return ToolLoop(
            self.args,
            self._ranks,
            environments,
            self.tools,
            self._tokenizer,
            control,
            has_environments=self.environment_factories is not None,
            context_limit=self._context_limit,
        )

    @property
    def environment_kinds(self) -> set[type]:
        """The classes of the environments, if rollouts have any."""
        return environment_kinds(self._environment_pool if self.environment_factories is not None else {})

    # ---- evaluations

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        self.evaluated_rollouts = 0
        self._evaluated_set = metric_key_prefix.partition("eval_")[2]
        self.forget_weights()
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent does, with completions as a table that W&B accepts."""
        as_text = self.log_completions and "wandb" in self.args.report_to and self.accelerator.is_main_process
        with without(self.args, "wandb") if as_text else nullcontext():
            self._log(logs, start_time)
        if as_text:
            log_to_wandb(self._logs, self.state.global_step, self.log_unique_prompts)

    def _log(self, logs: dict[str, float], start_time: float | None) -> None:
        """Log as the parent does; with several evaluation sets, metrics carry the set's name: `eval_easy_reward`."""
        if self.model.training:
            super().log(logs, start_time)
            return
        metrics = self._metrics["eval"]
        if self._evaluated_set:
            named = {f"{self._evaluated_set}_{name}": values for name, values in metrics.items()}
            metrics.clear()
            metrics.update(named)
        super().log(logs, start_time)
        # A metric that nobody scored is None in the log. Its values may be compared, and NaN is never the best.
        logs.update({name: math.nan for name, value in logs.items() if value is None})

    def _evaluate_batch(self, rows: list[Row]) -> dict[str, Any]:
        """Roll out and score rows, nothing else: an evaluation has no loss and makes no forward for one."""
        corrects, beta = self.vllm_importance_sampling_correction, self.beta
        self.vllm_importance_sampling_correction, self.beta = False, 0.0
        try:
            with self._new_batch(rows, is_training=False) as batch:
                output = self._sample_and_score(batch)
                self._log_evaluated(batch)
        finally:
            self.vllm_importance_sampling_correction, self.beta = corrects, beta
        self.evaluated_rollouts += len(rows) * self._ranks.number
        return output

    def _log_evaluated(self, batch: Batch) -> None:
        """Log how many turns the rollouts of an evaluation have."""
        assert batch.turns is not None
        self._log_scalars("eval", turn_metrics(batch.turns.number_N[batch.turns.number_N > 0]))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        with torch.no_grad(), self._heard():
            self._prepare_inputs(inputs)
        return None, None, None

    def _heard(self) -> AbstractContextManager[None]:
        """A context in which TRL logs to no tracker without a run: outside of training, Trackio has none."""
        return nullcontext() if self.is_in_train else without(self.args, "trackio")

    @property
    def _fewest_rows(self) -> int:
        """The fewest rows whose rollouts divide equally among the ranks, as collective generation requires."""
        return self._ranks.number // math.gcd(self._ranks.number, self.num_generations_eval)

    @property
    def rows_per_batch(self) -> int:
        """Rows that `roll_out` takes together: as many as fill `per_device_eval_batch_size` on each rank."""
        rollouts = self.args.per_device_eval_batch_size * self._ranks.number
        return max(rollouts // self.num_generations_eval // self._fewest_rows, 1) * self._fewest_rows

    def roll_out(self, rows: Sequence[Row], *, seed: int = 0, first: int = 0) -> list[Record]:
        """Roll out and score rows with the current policy, `num_generations_eval` times each.

        All ranks call it together with the same rows, and all get the records, each with the number of its row.

        Args:
            seed: seed of the rollouts. The same one gives the same rollouts, whatever was drawn before.
            first: number of the first of these rows among all that are rolled out with this seed.
        """
        rows, records = list(rows), []
        if first == 0:  # other weights may have been loaded since they were last pushed to vLLM
            self.forget_weights()
        with evaluation_mode(self.model):
            for start in range(0, len(rows), self.rows_per_batch):
                records += self._roll_out_at_once(rows[start : start + self.rows_per_batch], seed, first + start)
        return records

    def _roll_out_at_once(self, rows: list[Row], seed: int, first: int) -> list[Record]:
        samples = self.num_generations_eval
        records: list[Record] = []
        filled = rows + rows[-1:] * (-len(rows) % self._fewest_rows)  # to divide equally among the ranks
        repeated = [row for row in filled for _ in range(samples)]
        drawn = int.from_bytes(hashlib.sha256(f"{seed}/{first}/{self._ranks.index}".encode()).digest()[:7], "big")
        before = self.on_rollouts, self.rollout_seed
        self.on_rollouts, self.rollout_seed, self.evaluated_rollouts = records.extend, seed, first * samples
        try:
            with seeded(drawn, self.accelerator.device), self._heard():
                mine = self._ranks.own_rows(len(repeated) // self._ranks.number)
                self._generate_and_score_completions(repeated[mine])
        finally:
            self.on_rollouts, self.rollout_seed = before
            self._metrics["eval"].clear()  # these belong to no evaluation step of the training loop
        gathered = gather_object(records)[: len(rows) * samples]
        return [{**record, "row": first + i // samples} for i, record in enumerate(gathered)]

    # ---- a batch

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        return self._train_batch(inputs) if self.model.training else self._evaluate_batch(inputs)

    def _train_batch(self, rows: list[Row]) -> dict[str, Any]:
        return self._roll_out_batch(rows)[0]

    def _roll_out_batch(self, rows: list[Row], round: int = 1) -> tuple[dict[str, Any], Batch]:
        """Generate, score and credit a batch; return the output and the `Batch`."""
        with self._new_batch(rows, is_training=True, round=round) as batch:
            return self.credit_batch(self._sample_and_score(batch), batch), batch

    @contextmanager
    def _new_batch(self, rows: list[Row], *, is_training: bool, round: int = 1) -> Iterator[Batch]:
        # The parent writes what a rollout function returns into the rows.
        self._batch = self.batch_class([dict(row) for row in rows], is_training, round)
        try:
            yield self._batch
        finally:
            self._batch = None

    def _sample_and_score(self, batch: Batch) -> dict[str, Any]:
        if self._tool_loop is not None:
            self._begin_tool_loop(self._tool_loop, batch.rows)
        output = super()._generate_and_score_completions(batch.rows)
        batch.turns = self._turns_of(output)
        if self._wants_records:
            batch.records = self._make_records(batch)
            self._see_records(batch.records)
        if self._tool_loop is not None:
            self._end_tool_loop(self._tool_loop, batch)
        return output

    def credit_batch(self, output: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Make what is trained on from sampled and scored rollouts. All ranks call it together."""
        assert batch.turns is not None
        self._log_scalars("train", turn_metrics(batch.turns.number_N[batch.turns.number_N > 0]))
        self._log_sampler_gap(output, batch.turns)
        return output

    def _turns_of(self, output: dict[str, Any]) -> Turns:
        turn_BT = turn_index(output["completion_mask"] * output.get("tool_mask", 1))
        return Turns(turn_BT, self.accelerator.gather(turn_BT.amax(dim=1) + 1), self._ranks.max(count_turns(turn_BT)))

    def _log_sampler_gap(self, output: dict[str, Any], turns: Turns) -> None:
        if "sampling_per_token_logps" not in output or "old_per_token_logps" not in output:
            return
        logps_BT = (output["sampling_per_token_logps"], output["old_per_token_logps"])
        sums = sampler_gap_sums(*logps_BT, turns.index_BT, turns.most)
        metrics = sampler_gap_metrics(self.accelerator.reduce(sums, reduction="sum"))
        self._log_scalars("train", metrics)
        self._gap_watch.see(metrics)

    def _log_scalars(self, mode: str, scalars: dict[str, float]) -> None:
        for name in sorted(scalars):
            self._metrics[mode][name].append(scalars[name])

    # ---- records

    @property
    def _wants_records(self) -> bool:
        return self.on_rollouts is not None

    def _see_records(self, records: list[Record]) -> None:
        if self.on_rollouts is not None:
            self.on_rollouts(records)

    def _make_records(self, batch: Batch, values_BK: Tensor | None = None) -> list[Record]:
        scored = batch.scored
        assert scored is not None
        of_rollouts = (scored.rows, scored.prompts, scored.completions, scored.rewards_BF)
        return make_records(*of_rollouts, self.reward_func_names, values_BK, self._happened(batch))

    def _happened(self, batch: Batch) -> list[dict[str, Any]] | None:
        """What the tool loop recorded of each rollout, or what its tokens say if a rollout function made it."""
        if self.rollout_func is None:
            rollouts = [] if self._tool_loop is None else self._tool_loop.rollouts
            return [rollout.record for rollout in rollouts] or None
        assert batch.tokens is not None
        tokens = zip(batch.tokens.prompt_ids, batch.tokens.completion_ids, batch.tokens.model_mask, strict=True)
        return [read_off(*of_rollout, self._tokenizer.decode, self._ends.ids) for of_rollout in tokens]

    # ---- rewards

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if self.args.answer_column not in self._signature_columns:
            self._signature_columns.append(self.args.answer_column)

    def _find_answers(self, rows: Sequence[Row]) -> list[Answer]:
        """The answers to the rows of a batch, whose environments have been reset."""
        environments = self.environments or [None] * len(rows)
        return [
            find_answer(row, self.args.answer_column, environment, self._has_failed_to_reset(environment))
            for row, environment in zip(rows, environments, strict=True)
        ]

    def _has_failed_to_reset(self, environment: Any) -> bool:
        return self._tool_loop is not None and self._tool_loop.environments.failed(environment) is not None

    def _calculate_rewards(
        self, inputs: list[Row], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        batch = self._batch
        assert batch is not None
        inputs = rows_with_answers(inputs, batch.answers)  # `reset` got them unchanged
        rewards_per_func_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if rewards_per_func_NF.isinf().any():
            named = [n for n, f in zip(self.reward_func_names, rewards_per_func_NF.T, strict=True) if f.isinf().any()]
            raise ValueError(f"Rewards must be finite, or None; {', '.join(named)} returned an infinite one.")
        if self._tool_loop is not None:
            excluded = self._tool_loop.unscored(len(inputs))
            excluded_N = self.accelerator.gather(torch.tensor(excluded, device=rewards_per_func_NF.device))
            rewards_per_func_NF = rewards_per_func_NF.masked_fill(excluded_N.unsqueeze(1), torch.nan)
        unscored_N = rewards_per_func_NF.isnan().all(dim=1)
        weighted_NF = rewards_per_func_NF * self.reward_weights.to(rewards_per_func_NF.device)
        batch.outcomes_N = weighted_NF.nansum(dim=1).masked_fill(unscored_N, torch.nan)
        batch.scored = Scored(inputs, prompts, completions, rewards_per_func_NF[self._ranks.own_rows(len(inputs))])
        return rewards_per_func_NF

    # ---- turns of a batch

    def _begin_tool_loop(self, loop: ToolLoop, rows: Sequence[Row]) -> None:
        if self.environment_factories is None:
            rows = ()
        elif self._multi_environment:  # each row names its environment, which the parent keeps to itself
            rows = [{name: row[name] for name in row if name != "environment"} for row in rows]
        loop.begin_batch(rows)

    def _end_tool_loop(self, loop: ToolLoop, batch: Batch) -> None:
        """Log metrics of the batch; if a tool has failed for good, stop the run, on all ranks together."""
        self._log_scalars(batch.mode, loop.metrics(training=batch.is_training))
        trouble = loop.end_batch(self._environment_pool if self.environment_factories is not None else {})
        if trouble is None:
            return
        saved = ""
        if self.is_in_train and self.state.global_step > 0:  # also if an evaluation in between found it
            self._save_checkpoint(self.model, trial=None)
            saved = (
                f" Training so far is saved in {self._checkpoint_now()}: fix the problem and resume from there "
                "(resume_from_checkpoint)."
            )
        raise RunStopped(f"{trouble}{saved}")

    def _generate(self, prompts: list) -> tuple:
        batch = self._batch
        assert batch is not None
        batch.answers = self._find_answers(batch.rows)
        self._read_answers(batch)  # before anything is sampled for nothing
        with left_as_it_was(self.model):
            rollout = super()._generate(prompts)
        prompt_ids, completion_ids, tool_mask = rollout[:3]
        if self._tool_loop is not None and self._tool_loop.rollouts:
            prompt_ids = [one.prompt_ids for one in self._tool_loop.rollouts]  # only a part if it was too long
        mask = tool_mask if tool_mask is not None else [[1] * len(ids) for ids in completion_ids]
        batch.tokens = Rollouts(prompt_ids, completion_ids, mask)
        if not batch.is_training:
            batch.old_logps = self._placeholders(completion_ids)  # an evaluation has no loss
        return prompt_ids, *rollout[1:]

    def _read_answers(self, batch: Batch) -> None:
        """Called when the answers are known. Here only rewards read them, and they check what they need."""

    def _placeholders(self, completion_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Zeros in place of the parent's pass over the old policy, for when nobody reads its result."""
        return [torch.zeros(len(ids), device=self.accelerator.device) for ids in completion_ids]

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._batch is not None and self._batch.old_logps is not None:
            # The parent's first request after generation has been answered already.
            logps = pad_sequence(self._batch.old_logps, batch_first=True)
            self._batch.old_logps = None
            return pad(logps, (0, logits_to_keep - logps.size(1))), None, None
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def _tool_call_loop(self, prompts: list, prompt_ids: list[list[int]], *_: Any) -> tuple:
        assert self._tool_loop is not None and self._batch is not None
        if not is_conversational({"prompt": prompts[0]}):
            raise ValueError(
                "Tools need conversational prompts: lists of messages with a role and a content. Convert the prompts "
                "with dataset.map, or train without tools."
            )
        starts = [self._start(i, ids) for i, ids in enumerate(prompt_ids)]
        with self._engine(self._rollout_seeds(prompt_ids), self._tails(self._batch)) as engine:
            rollouts = self._tool_loop.run(starts, engine, self._ends, self._batch.is_training)
        self._batch.tail_scores = engine.scores
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

    def _tails(self, batch: Batch) -> Sequence[Tail] | None:
        """What to score after each context of the rollouts while they are sampled, if the engine can."""
        return None

    def _start(self, i: int, prompt_ids: list[int]) -> Start:
        tools = {**self._sync_tool_dicts[i], **self._async_tool_dicts[i]}
        if self.environments is None:
            return Start(prompt_ids, tools, self.tools)
        return Start(prompt_ids, tools, self._env_tools[self._batch_environments[i]], self.environments[i])

    # ---- sampling

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple:
        if self._tool_loop is not None and self.tools:  # an environment may have none
            # The parent asks for the first turns and hands them to its tool loop. Ours samples those as well.
            return [[self._tokenizer.eos_token_id]] * len(prompt_ids), None
        seeds = Seeds(self._rollout_seeds(prompt_ids))
        return self._sample([Request(ids, seeds.next(i)) for i, ids in enumerate(prompt_ids)], *args, **kwargs)

    def _rollout_seeds(self, prompt_ids: list[list[int]]) -> list[int] | None:
        """A seed for each of this rank's rollouts, the same on any number of ranks.

        Evaluations use the same seeds at every step, so that two of them differ only by the policy: the place of a
        rollout is its place in the whole evaluation.
        """
        if not self.args.seeds_rollouts:
            return None
        assert self._batch is not None
        first = self._ranks.own_rows(len(prompt_ids)).start
        places = list(range(first, first + len(prompt_ids)))
        batch = self._step // (self.args.steps_per_generation * self.num_iterations)  # since the run began
        when: tuple[int, ...] = (self.state.global_step, batch, self._batch.round)
        if not self._batch.is_training:
            when, places = (), [self.evaluated_rollouts + place for place in places]
        return [
            seed_of(self.rollout_seed, self._batch.mode, *when, place, ids)
            for place, ids in zip(places, prompt_ids, strict=True)
        ]

    # ---- what a resumed run asks for

    def settings_of_run(self, may_change: Collection[str] = ()) -> dict[str, Any]:
        return super().settings_of_run({*may_change, *self.args.MAY_CHANGE})
