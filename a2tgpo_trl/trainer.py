"""A2TGPOTrainer: wires turns, information gain, credit and loss into training with tools.

    rollout -> turns -> gain pass -> [old log-probs] -> rewards, outcome advantages (parent) -> credit
    loss: log-probs (parent) -> turn ratio -> clipped surrogate and aggregation (parent)

There is no mathematics here: the pure modules compute, and the parent trains. The parent is given other inputs
(advantages per token, a clip range per token, old log-probabilities that make its token ratio the turn's), so that its
aggregations, KL, entropy, clipping and corrections stay its own.
"""

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from trl.data_utils import is_conversational

from .config import WITHOUT_CLIP_RANGE, A2TGPOConfig
from .credit import GAIN_FLOOR, Evidence, preset_of
from .credit.credit_pass import CreditPass, ReadTurns
from .credit.methods import identity_of
from .credit.metrics import floor_metrics
from .credit.turn_rewards import TurnReward
from .credit.uninformative import uninformative_groups
from .dropout import settle_dropout
from .information_gain import TurnScores, information_gain
from .information_gain.answers import check_dataset, check_owned_data, named_datasets, used_answers
from .information_gain.gain_pass import GainPass, GainSettings
from .information_gain.metrics import gain_metrics
from .information_gain.probes import check_seam, thought_before_answer
from .information_gain.rounding import floors_of_gains
from .loss import clipped_tokens, ratio_metrics, ratio_reference, ratio_sums
from .recording import Recorder, Schedule, TokenTexts, Update, WithRun, credited, trained_on, with_tokens
from .report.alarms import Alarms, averaged
from .report.nothing_to_learn import NothingToLearn
from .rollout.answers import Row, declares_answer
from .rollout.batch import Batch
from .rollout.engines import Tail
from .rollout.records import Record
from .rollout.resampling import Resampled, Resampler
from .rollout.rounds import RoundLog
from .scoring import ScoringTrainer
from .tracking import OF_TRACKERS, Tracking
from .turns import to_tokens


logger = get_logger(__name__)

NUMBER = "record_number"  # of a rollout among those of its rank, in a recorded batch


@dataclass
class CreditedBatch(Batch):
    """A batch whose turns are credited. G groups of rollouts on all ranks."""

    accepted: list[list[str]] = field(default_factory=list)  # answers of each rollout to score, if any are scored
    read_turns: ReadTurns = ReadTurns()  # of the records, by the credit pass
    turn_scores: TurnScores | None = None  # None if no gains are computed
    uninformative_G: Tensor | None = None  # groups that teach nothing
    credited: list[Record] = field(default_factory=list)  # records with their credit, if they are to be written


class A2TGPOTrainer(ScoringTrainer):
    """
    Trainer for Agentic Turn-Group Policy Optimization with Adaptive Turn-level Clipping (A2TGPO).

    Differences from [`~trl.GRPOTrainer`], besides those of [`ToolTrainer`]:

    - the data set has a column with the ground-truth answer (`A2TGPOConfig.answer_column`), or environments give it;
    - after each rollout the policy scores that answer at every turn boundary, and each turn is credited with what it
      gained, in addition to the outcome advantage of the whole rollout;
    - the importance ratio is that of the turn, and its clip range follows the turn's gain;
    - `A2TGPOConfig.credit` names the method: A2TGPO, or one of those to compare it with.

    Takes the arguments of [`~trl.GRPOTrainer`], with an [`A2TGPOConfig`] for `args`, and `turn_reward_funcs`:
    functions from the record of a rollout (see `rollout/records.py`) to one number per turn. Those without a weight in
    `A2TGPOConfig.turn_rewards`, where weights go by function name, have 1.

    It extends the order of calls of [`ToolTrainer`]:

        _train_batch(rows)              prompts whose groups teach nothing are rolled out again (`resample_limit`)
          _generate(prompts)            followed by the gain pass, which may supply the parent's old log-probabilities
          _see_records(records)         turn rewards are read off the records first
          credit_batch(output, batch)   advantages and clip scales of turns, assigned to their tokens
        _prepare_inputs(...)            micro-batches without padding that none of their rows needs
        _compute_loss(model, inputs)    with the clip range of each turn, and old log-probabilities that make the ratio

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

    config_class = A2TGPOConfig
    batch_class = CreditedBatch

    args: A2TGPOConfig
    # The parent's two numbers; tensors with one entry per token while the loss runs.
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
        super().__init__(model, reward_funcs, args, *positional, **keywords)
        settle_dropout(
            self.model,
            self.args.importance_sampling_level,
            disabled=self.args.disable_dropout,
            several_updates=not self.args.is_on_policy,
            sampler_is_corrected=self.args.use_vllm and self.args.vllm_importance_sampling_correction,
        )
        # Ratios wider than a token reach the parent's loss through `ratio_reference`, as token ratios.
        self.importance_sampling_level = "token"
        has_data = (positional[0] if positional else keywords.get("train_dataset")) is not None
        self._gain_pass = self._make_gain_pass(has_data) if self.args.computes_gains else None
        self._credit = self._make_credit_pass(turn_reward_funcs)
        self._recorder = self._make_recorder()
        self._nothing_to_learn = NothingToLearn(lambda: self._interruption.leaving)
        self.add_callback(self._nothing_to_learn)
        self._alarms = Alarms()
        self._tracking = self._make_tracking()
        for idle in filter(None, (self.args.idle_clip_range, self.args.idle_gain_pass)):
            logger.warning(idle)

    # ---- the two passes

    def _make_gain_pass(self, has_data: bool) -> GainPass:
        """`has_data`: whether the trainer was given a data set; if not, TRL has put one in its place."""
        args = self.args
        settings = GainSettings(args.probe_template, args.answer_aliases, args.gain_measure, args.gain_token_budget)
        # FSDP replaces the model when training starts.
        gain_pass = GainPass(lambda: self.model, self._tokenizer, settings, self.accelerator)
        self._check_answers_are_there(has_data)
        self._check_probe_seam()
        return gain_pass

    def _check_answers_are_there(self, has_data: bool) -> None:
        """Check that the data sets whose gains are computed have something to score.

        The answers of environments are only known once they are reset.
        """
        args, kinds = self.args, self.environment_kinds
        if any(map(declares_answer, kinds)):
            return
        check_owned_data(kinds, has_data)
        trained_on = self.train_dataset if args.uses_gain else None
        for name, dataset in named_datasets(trained_on, self.eval_dataset if args.eval_gains else None):
            check_dataset(dataset, name, args.answer_column, args.answer_aliases, self._tokenizer)

    def _check_probe_seam(self) -> None:
        first: dict[str, Any] = next(iter(self.train_dataset), {})
        conversational = is_conversational(first) or self.environment_factories is not None
        if self._tokenizer.chat_template is None or not conversational or self.rollout_func is not None:
            return  # texts, and what a rollout function writes, contain the user's own template
        prompt, template = self._rendered_prompt(), self.args.probe_template
        check_seam(self._tokenizer, template, prompt)
        problem = thought_before_answer(template, prompt, self._rendered_prompt(enable_thinking=False))
        if problem is not None:
            logger.warning(problem)

    def _rendered_prompt(self, **template_kwargs: Any) -> str:
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": "question"}],
            tools=self.tools or None,
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=False,
            **{**self.chat_template_kwargs, **template_kwargs},
        )

    def _make_credit_pass(self, own: Sequence[TurnReward] | Mapping[str, TurnReward]) -> CreditPass:
        credit = CreditPass(
            self.args.credit_settings,
            self.accelerator,
            own,
            self.environment_kinds,
            has_tools=self._tool_loop is not None and bool(self.tools),
            has_rollout_func=self.rollout_func is not None,
            splits_models=self._dist.is_zero3,
        )
        self.args.shaping_embedding = (
            credit.shaping_embedding
        )  # the name behind "auto", so that a resumed run has the same
        return credit

    @property
    def _stride(self) -> int:
        """Steps from one batch of rollouts to the next, at least one."""
        return math.ceil(self._window / self.args.gradient_accumulation_steps)

    def _make_recorder(self) -> Recorder | None:
        args = self.args
        if args.record_every == 0:
            return None
        recorder = Recorder(
            Path(args.output_dir),
            self.accelerator.process_index,
            Schedule(args.record_every, self._stride),
            args.record_megabytes * 1e6 / self._ranks.number,
            args.record_format,
            TokenTexts(self._tokenizer) if args.record_tokens else None,
        )
        self.add_callback(WithRun(recorder, self._ranks.number))
        return recorder

    def _make_tracking(self) -> Tracking:
        callbacks = self.callback_handler.callbacks
        tracking = Tracking(self.args.table_turns, self.accelerator.is_main_process, lambda: callbacks, self._stride)
        # Right after those of the trackers: later ones may log, and Trackio keeps the config of its first log.
        last = max((i for i, callback in enumerate(callbacks) if isinstance(callback, OF_TRACKERS)), default=-1)
        callbacks.insert(last + 1, tracking)
        return tracking

    @property
    def run_facts(self) -> dict[str, Any]:
        """What trackers get as config besides the settings, such as the recipe. Fill it in before training."""
        return self._tracking.facts

    @property
    def turn_reward_names(self) -> list[str]:
        """The names of the turn rewards that count."""
        return self._credit.rewards.names

    # ---- what a resumed run asks for

    def settings_of_run(self, may_change: Collection[str] = ()) -> dict[str, Any]:
        of_credit = {"credit": identity_of(self.args.credit), "turn rewards": self.turn_reward_names}
        return {**super().settings_of_run(may_change), **of_credit}

    def default_settings(self) -> dict[str, Any]:
        found = {**super().default_settings(), **preset_of(self.args.credit_method).values}
        del found["credit"]  # a run without it was not made by this trainer
        return found

    def extra_state(self) -> dict[str, Any]:
        gain_pass = self._gain_pass
        return {"packing": None if gain_pass is None else [gain_pass.packing, gain_pass.packing_tried]}

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        if self._gain_pass is not None and saved["packing"] is not None:
            self._gain_pass.packing, self._gain_pass.packing_tried = saved["packing"]

    # ---- the log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent does, with the alarms."""
        if self.model.training:
            alarms, warnings = self._alarms.see(self.state.log_history, averaged(self._metrics["train"]))
            self._log_scalars("train", alarms)
            for warning in warnings:
                logger.warning(warning)
        super().log(logs, start_time)

    # ---- a batch

    def _train_batch(self, rows: list[Row]) -> dict[str, Any]:
        """Roll out and credit a batch; groups that teach nothing are rolled out again."""
        log = RoundLog(self._metrics["train"])
        rounds: list[CreditedBatch] = []
        outcomes: list[Tensor] = []  # of the rounds

        def roll_out(rows: list[Row]) -> tuple[dict[str, Any], Tensor]:
            output, batch = self._roll_out_batch(rows, len(rounds) + 1)
            assert isinstance(batch, CreditedBatch)
            assert batch.outcomes_N is not None and batch.uninformative_G is not None
            log.end_round(len(rows))
            rounds.append(batch)
            outcomes.append(batch.outcomes_N)
            return output, batch.uninformative_G

        resampler = Resampler(
            self._ranks,
            limit=self.args.resample_limit,
            group_size=self.num_generations,
            pad_id=self._tokenizer.pad_token_id,
            multiple=self.pad_to_multiple_of,
        )
        found = resampler.run(roll_out, rows)
        log.end_batch()
        self._keep_records(found, rounds, len(rows))
        self._log_groups(found, outcomes)
        return found.output

    def _keep_records(self, found: Resampled, rounds: Sequence[CreditedBatch], number: int) -> None:
        """Hand the records of the batch's rollouts, of which this rank has `number`, to trackers and recorder."""
        of_rounds = [(self._ranks.own_rows(len(batch.credited)).start, batch.credited) for batch in rounds]
        placed = trained_on(of_rounds, found.sources, self.num_generations)
        step = self.state.global_step
        if self._tracking.wants(step):
            self._tracking.put(step, [record for _, record in placed])
        if self._recorder is not None and self._recorder.is_due(step):
            self._recorder.put(step, self._of_this_rank(placed, number), self.num_iterations)
            if self._recorder.wants(step):  # not if it has stopped writing
                found.output[NUMBER] = torch.arange(number, device=self.accelerator.device)  # the parent shuffles rows

    def _log_groups(self, found: Resampled, outcomes: list[Tensor]) -> None:
        """Log how many groups teach nothing; `outcomes` are those of the rounds."""
        metrics = dict(found.metrics)
        if "groups/teach_nothing" in metrics:
            self._nothing_to_learn.see(metrics["groups/teach_nothing"], torch.cat(outcomes).nanmean().item())
        if self.args.resample_limit:
            of_groups = [outcomes[number].view(-1, self.num_generations)[i] for number, i in found.sources]
            metrics["groups/reward"] = torch.cat(of_groups).nanmean().item()
        self._log_scalars("train", metrics)

    def _of_this_rank(self, placed: Sequence[tuple[int, Record]], number: int) -> list[Record]:
        """Records of the rollouts that this rank trains on, in order; another rank may have rolled one out again."""
        rows = self._ranks.own_rows(number)
        mine = [one for one in placed if rows.start <= one[0] < rows.stop]
        if self._exchanges_records:
            elsewhere = [one for one in placed if not rows.start <= one[0] < rows.stop]
            sent = [one for of_rank in self._ranks.gather_lists(elsewhere) for one in of_rank]
            mine += [one for one in sent if rows.start <= one[0] < rows.stop]
        return [record for _, record in sorted(mine, key=lambda one: one[0])]

    @property
    def _exchanges_records(self) -> bool:
        """Whether a rollout may be trained on by a rank other than the one that made it."""
        return self.args.resample_limit > 0 and self._ranks.number > 1

    def _read_answers(self, batch: Batch) -> None:
        assert isinstance(batch, CreditedBatch)
        if self._pass_for(batch) is not None:
            aliases = self.args.answer_aliases
            batch.accepted = [used_answers(answer.text, aliases, answer.where) for answer in batch.answers]

    def _generate(self, prompts: list) -> tuple:
        rollout = super()._generate(prompts)
        batch = self._batch
        assert isinstance(batch, CreditedBatch) and batch.tokens is not None
        gain_pass = self._pass_for(batch)
        if gain_pass is not None:
            batch.turn_scores, metrics = gain_pass.run(
                batch.tokens, batch.accepted, self._wants_old_logps(batch), batch.tail_scores
            )
            self._log_scalars(batch.mode, metrics)
        if not batch.is_training:
            return rollout
        if batch.turn_scores is not None:
            batch.old_logps = batch.turn_scores.logps
        sampled_logps = rollout[4]
        if sampled_logps is None and self._scores_trimmed:
            # Nothing compares them with those of the sampler, and the loss makes its own.
            batch.old_logps = self._placeholders(batch.tokens.completion_ids)
        return rollout

    def _tails(self, batch: Batch) -> Sequence[Tail] | None:
        assert isinstance(batch, CreditedBatch)
        gain_pass = self._pass_for(batch)
        if gain_pass is None:
            return None
        return gain_pass.probes_while_sampling(batch.accepted, self._wants_old_logps(batch))

    def _pass_for(self, batch: Batch) -> GainPass | None:
        """The gain pass, if gains of this batch are wanted."""
        wanted = self.args.uses_gain if batch.is_training else self.args.eval_gains
        return self._gain_pass if wanted else None

    def _wants_old_logps(self, batch: Batch) -> bool:
        return batch.is_training and self._parent_wants_old_logps

    @property
    def _parent_wants_old_logps(self) -> bool:
        """The parent's own condition for a pass over the old policy; a contract test keeps the two the same."""
        return not self.args.is_on_policy or (self.use_vllm and self.vllm_importance_sampling_correction)

    @property
    def _wants_records(self) -> bool:
        return self._credit.reads_records or self._is_recorded or self._is_shown or super()._wants_records

    @property
    def _is_recorded(self) -> bool:
        """Whether the batch that is being made will be written to the run's folder."""
        assert self._batch is not None
        if self._recorder is None or not self._batch.is_training:
            return False
        step = self.state.global_step
        # Other ranks may need a record of this rank, even if it has itself stopped writing.
        return self._recorder.is_due(step) if self._exchanges_records else self._recorder.wants(step)

    @property
    def _is_shown(self) -> bool:
        """Whether trackers of this process get turns of the batch."""
        assert self._batch is not None
        return self._batch.is_training and self._tracking.wants(self.state.global_step)

    def _make_records(self, batch: Batch, values_BK: Tensor | None = None) -> list[Record]:
        assert isinstance(batch, CreditedBatch)
        return super()._make_records(batch, None if batch.turn_scores is None else batch.turn_scores.values_BK)

    def _see_records(self, records: list[Record]) -> None:
        if self._credit.reads_records:
            batch = self._batch
            assert isinstance(batch, CreditedBatch)
            batch.read_turns = self._credit.read(records, self.num_generations if batch.is_training else None)
        super()._see_records(records)

    # ---- credit

    def credit_batch(self, output: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Replace the parent's advantage per rollout by one per token, and add turn index and clip scale."""
        assert isinstance(batch, CreditedBatch) and batch.outcomes_N is not None and batch.turns is not None
        output = super().credit_batch(output, batch)
        turn_BT, num_turns_N, num_turns = batch.turns.index_BT, batch.turns.number_N, batch.turns.most
        local = self._ranks.own_rows(len(turn_BT))

        outcome_N = self.accelerator.gather(output["advantages"])
        group_ids_N = torch.arange(len(outcome_N), device=outcome_N.device) // self.num_generations
        values_NV = self._gather_values(batch, turn_BT, num_turns)
        # Rollouts out of the loss (truncated and masked, or unscored) are out of the statistics as well.
        in_loss_N = (num_turns_N > 0) & ~batch.unscored_N
        values_NV = values_NV.masked_fill(~in_loss_N.unsqueeze(1), torch.nan)
        gains_NK = information_gain(values_NV, num_turns, first=self.args.first_gain, last=self.args.last_gain)
        logprob_floor = GAIN_FLOOR if batch.turn_scores is None else batch.turn_scores.gain_floor
        evidence, metrics = self._credit.evidence(
            batch.read_turns,
            gains_NK,
            batch.outcomes_N,
            outcome_N,
            num_turns_N.masked_fill(~in_loss_N, 0),
            group_ids_N,
            floors_of_gains(values_NV[:, : num_turns + 1], logprob_floor, self.args.gain_measure),
        )
        advantages_NK, scale_NK = self._credit.advantages(evidence), self._credit.clip_scale(evidence)
        batch.uninformative_G = uninformative_groups(evidence, self._credit.advantages, self._credit.strength)
        self._show_advantages(advantages_NK, evidence.num_turns_N)
        self._log_scalars("train", metrics)
        if self._is_recorded or self._is_shown:
            batch.credited = self._credited_records(batch, evidence, advantages_NK, scale_NK)
        if self.args.uses_gain:
            self._tracking.see_gains(gains_NK, batch.round)
            self._log_scalars("train", gain_metrics(values_NV, gains_NK, scale_NK, group_ids_N))
            self._log_scalars("train", floor_metrics(gains_NK, group_ids_N, evidence.gain_floor, logprob_floor))
        output["advantages"] = to_tokens(advantages_NK[local], turn_BT)
        output["clip_scale"] = to_tokens(scale_NK[local], turn_BT, fill=1.0)
        output["turn_index"] = turn_BT
        # Stored in the batch, not on the trainer: an evaluation may come before a buffered batch is used up.
        output["num_turns"] = torch.tensor(num_turns, device=turn_BT.device)
        return output

    def _credited_records(
        self, batch: Batch, evidence: Evidence, advantages_NK: Tensor, scale_NK: Tensor
    ) -> list[Record]:
        """Records of this rank's rollouts, with their credit."""
        mine = self._ranks.own_rows(len(batch.records))
        of_turns = {"advantages": advantages_NK, "scores": self._credit.scores(evidence), "clip_scale": scale_NK}
        on_cpu = {name: values[mine].cpu() for name, values in of_turns.items()}
        outcomes = evidence.outcomes_N[mine].tolist()
        advantages = (self.args.outcome_weight * evidence.outcome_advantages_N[mine]).tolist()
        turns = evidence.num_turns_N[mine].tolist()
        records = [
            credited(record, outcomes[i], advantages[i], {name: on_cpu[name][i] for name in on_cpu}, turns[i])
            for i, record in enumerate(batch.records)
        ]
        if not (self._is_recorded and self.args.record_tokens):
            return records
        assert batch.tokens is not None
        tokens = (batch.tokens.prompt_ids, batch.tokens.completion_ids, batch.tokens.model_mask)
        return list(map(with_tokens, records, *tokens))

    def _gather_values(self, batch: CreditedBatch, turn_BT: Tensor, num_turns: int) -> Tensor:
        """Values of all ranks' rollouts, with one column more than turns; all NaN if none were computed."""
        if batch.turn_scores is None:
            values_BV = torch.full((len(turn_BT), 1), torch.nan, device=turn_BT.device)
        else:
            values_BV = batch.turn_scores.values_BK.to(turn_BT.device)
        values_BV = pad(values_BV, (0, max(num_turns + 1 - values_BV.size(1), 0)), value=torch.nan)
        return self.accelerator.gather(values_BV.contiguous())

    def _log_evaluated(self, batch: Batch) -> None:
        """Log what single turns earned, besides how many there are."""
        super()._log_evaluated(batch)
        assert isinstance(batch, CreditedBatch) and batch.turns is not None
        num_turns_N = batch.turns.number_N
        scored_N = num_turns_N.masked_fill(batch.unscored_N, 0)
        self._log_scalars("eval", self._credit.metrics(batch.read_turns, scored_N, batch.turns.most))
        self._show_advantages(num_turns_N.new_zeros(len(num_turns_N), 0), torch.zeros_like(num_turns_N))

    def _show_advantages(self, advantages_NK: Tensor, num_turns_N: Tensor) -> None:
        """Show turn advantages and their mean in the table of `log_completions`; NaN for a rollout without any.

        They replace those of whole rollouts, which the parent has put there before crediting.
        """
        if not self.log_completions:
            return
        of_turns = [row[:number] for row, number in zip(advantages_NK.tolist(), num_turns_N.tolist(), strict=True)]
        shown = self._logs["advantages"]
        for _ in range(min(len(of_turns), len(shown))):
            shown.pop()
        shown.extend(sum(row) / len(row) if row else math.nan for row in of_turns)
        self._logs["extra"]["turn_advantages"].extend([round(value, 4) for value in row] for row in of_turns)

    # ---- loss

    def _compute_loss(self, model, inputs: dict[str, Any]) -> Tensor:
        """The parent's loss, with the clip range of each turn in place of the parent's two numbers."""
        epsilon_low, epsilon_high = self.epsilon_low, self.epsilon_high
        self.epsilon_low = epsilon_low * inputs["clip_scale"]
        self.epsilon_high = epsilon_high * inputs["clip_scale"]
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self.epsilon_low, self.epsilon_high = epsilon_low, epsilon_high

    def _get_per_token_logps_and_entropies(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._loss_inputs is not None:
            logps = self._set_turn_ratio(self._loss_inputs, logps)
        return logps, entropies, aux_loss

    def _set_turn_ratio(self, inputs: dict[str, Any], logps: Tensor) -> Tensor:
        """Put in old log-probs, after the parent's forward, that make the parent's ratio the turn's."""
        old_logps = inputs.get("old_per_token_logps")
        old_logps = logps.detach() if old_logps is None else old_logps
        turn_BT = inputs["turn_index"]
        logps, reference = ratio_reference(logps, old_logps, turn_BT, self.args.importance_sampling_level)
        inputs["old_per_token_logps"] = reference
        clips = self.loss_type not in WITHOUT_CLIP_RANGE
        with torch.no_grad():
            ratio_BT = (logps - reference).exp()
            clip = (inputs["advantages"], self.epsilon_low, self.epsilon_high)
            sums = ratio_sums(ratio_BT, *clip, turn_BT, int(inputs["num_turns"]))
            if self._recorder is not None and NUMBER in inputs:
                clipped_BT = clipped_tokens(ratio_BT, *clip) if clips else None
                update = Update(turn_BT, logps.detach(), old_logps.detach(), ratio_BT, clipped_BT)
                self._recorder.see(inputs[NUMBER].tolist(), update)
        self._log_scalars("train", ratio_metrics(self.accelerator.reduce(sums, reduction="sum"), clips))
        return logps
