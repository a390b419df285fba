"""A trainer that resumes where it was interrupted.

    train -> which checkpoint -> TRL's loading -> what that leaves out -> steps -> TRL's saving -> manifest

Besides what TRL saves, a checkpoint holds a file of each rank (see `state.py`) and a manifest, which says that it is
whole, and which run it belongs to.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import send_to_device, set_seed
from transformers import TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from trl import GRPOTrainer

from ..errors import ResumeError, RunInterrupted
from ..ranks import Ranks
from .choice import Checkpoint, Choice, Run
from .disk import is_about_writing, leave_at_once, write_together
from .folders import checkpoint, declare_whole, make_place, remove_surplus
from .interruption import Interruption
from .own_files import LOADED, MODEL_CARD, OwnFiles
from .same_run import default_settings, differences, layout_of, settings_of
from .state import OF_A_RANK, REFERENCE, RandomState, Snapshot, as_lists, refill


logger = get_logger(__name__)

COMPLETIONS = "completions/completions_{:05d}.parquet"  # where TRL writes a step's completions


class Resumable(GRPOTrainer):
    """[`~trl.GRPOTrainer`] whose `train` may be interrupted at any moment, and resumed to the same end.

    A subclass may extend these methods:

    - `settings_of_run`: what must be the same for a run to be resumed;
    - `extra_state` and `load_extra_state`: what a rank's next steps depend on, besides what TRL's trainer holds;
    - `forget_weights`: called before other weights are loaded, for a subclass that keeps copies of them;

    and set two attributes by its settings once it is made: `allows_changes` and `seeds_rollouts`.
    """

    _buffered_inputs: list[dict[str, Any]] | None  # micro-batches of the rollouts that are trained on
    _train_sampler: Any = None  # a stream has none
    allows_changes = False  # whether a run resumes from a checkpoint that was saved with other settings
    seeds_rollouts = False  # whether a rollout depends on its own seed, not on the number of processes

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self.args.sync_ref_model and sharded and self.args.save_strategy != "no":
            raise ValueError(
                "sync_ref_model changes the reference model, and no checkpoint holds a reference model that is "
                "sharded: a resumed run would differ from an uninterrupted one. Leave it out, or train without "
                "checkpoints (save_strategy='no')."
            )
        self._ranks = Ranks(self.accelerator)
        self._interruption = Interruption(self._ranks)
        self.add_callback(StepCallback(self._resume, self._begin_step, self._end_step))
        self.add_callback(self._interruption)

    # ---- what a subclass may extend

    def settings_of_run(self, may_change: Collection[str] = ()) -> dict[str, Any]:
        """Return what must be the same for a run to be resumed, as plain values by name, without `may_change`."""
        return settings_of(self, may_change)

    def default_settings(self) -> dict[str, Any]:
        """Return the default values of these settings."""
        return default_settings(self.args)

    def extra_state(self) -> dict[str, Any]:
        """Return tensors, numbers and text of this rank, under names that `_state_now` does not use."""
        return {}

    def load_extra_state(self, saved: dict[str, Any]) -> None:
        """Restore what `extra_state` returned. `saved` also holds entries that the subclass does not know."""

    def forget_weights(self) -> None:
        """Called when other weights are about to be loaded."""

    # ---- resuming

    def train(self, resume_from_checkpoint: bool | str | None = None, *args: Any, **kwargs: Any):
        """Train as the parent does, resuming if asked from a checkpoint that is whole and of the same run.

        Args:
            resume_from_checkpoint: True for the latest whole one in the output folder, or a checkpoint's folder.
        """
        self._run = Run(
            Path(self.args.output_dir),
            self.settings_of_run(),
            self.default_settings(),
            layout_of(self),
            self.allows_changes,
            self.seeds_rollouts,
            self.args.sync_ref_model,
        )
        # The state at the beginning of the current step or evaluation; None between two.
        self._begun: Snapshot | None = None
        # As the last step left it: a new epoch draws random numbers before a step begins.
        self._random_state: RandomState | None = None
        self._saved_step: int | None = None
        self._is_evaluating, self._evaluated_step = False, -1
        self._passes, self._pass_begins = 0, 0  # through the data before this one, and the step at which it began
        # An earlier training may have been interrupted between two micro-steps.
        self._step, self._buffered_inputs = 0, None
        self._resumed = self._choose(resume_from_checkpoint)
        self._evaluation_is_due = bool(self._facts.get("evaluation_is_due"))
        self.forget_weights()
        with self._interruption.listening():
            return super().train(None if self._resumed is None else str(self._resumed.folder), *args, **kwargs)

    def _choose(self, asked: bool | str | None) -> Checkpoint | None:
        choice = Choice(self._run, self._ranks)
        chosen = choice.choose(asked)
        if chosen is not None and choice.is_of_run(chosen):
            choice.set_later_aside(chosen, moves=self.args.should_save)
            if chosen.facts is not None:
                self._saved_step = chosen.facts["step"]  # saving at this step would write the same
        return chosen

    @property
    def _facts(self) -> dict[str, Any]:
        """What the manifest says of the checkpoint resumed from; empty if there is none."""
        return {} if self._resumed is None else self._resumed.facts or {}

    @property
    def _window(self) -> int:
        """The number of micro-steps that train on a batch of rollouts."""
        return self.args.steps_per_generation * self.num_iterations

    def _resume(self) -> None:
        """Load the rest when training begins: TRL has loaded what it saves."""
        if self._resumed is None:
            return
        # The intervals of saving, logging and evaluating may have changed.
        self.state.compute_steps(self.args, self.state.max_steps)
        if not self._facts:
            return
        folder = self._resumed.folder
        if self.args.sync_ref_model:
            reference = torch.load(folder / REFERENCE, map_location="cpu", weights_only=True)
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(reference)
        if differences(self._facts["layout"], self._run.layout):
            self._step, self._buffered_inputs = self._facts["windows"] * self._window, None
        else:
            self._load_state(torch.load(folder / self._rank_file, map_location="cpu", weights_only=True))

    @property
    def _rank_file(self) -> str:
        return OF_A_RANK.format(self.accelerator.process_index)

    def _state_now(self) -> dict[str, Any]:
        """Return what this rank's next steps depend on and TRL does not save: only tensors, numbers and text."""
        return {
            "micro_step": self._step,
            # At the end of a window the batch is used up.
            "batch": self._buffered_inputs if self._step % self._window else None,
            "metrics": {name: [float(v) for v in values] for name, values in self._metrics["train"].items()},
            "loss": self._tr_loss.detach().clone(),
            "last_logged": self._globalstep_last_logged,
            "completions": as_lists(self._logs) if self.accelerator.is_main_process else None,
            **self.extra_state(),
        }

    def _load_state(self, saved: dict[str, Any]) -> None:
        missing = sorted(self.extra_state().keys() - saved.keys())
        if missing:
            raise ResumeError(
                "The checkpoint was saved by a different class of trainer, which does not save "
                f"{', '.join(missing)}. Resume with that class, or start a new run from its weights "
                "(model_name_or_path)."
            )
        device = self.accelerator.device
        self._step, self._buffered_inputs = saved["micro_step"], send_to_device(saved["batch"], device)
        self._metrics["train"].clear()
        self._metrics["train"].update({name: list(values) for name, values in saved["metrics"].items()})
        self._tr_loss += saved["loss"].to(device)
        self._total_loss_scalar -= saved["loss"].item()  # TRL's mean at the end is over the steps of this process
        self._globalstep_last_logged = saved["last_logged"]
        refill(self._logs, json.loads(saved["completions"]) or {})
        self.load_extra_state(saved)

    def _get_train_sampler(self, *args: Any, **kwargs: Any):
        self._train_sampler = super()._get_train_sampler(*args, **kwargs)
        return self._train_sampler

    def _run_epoch(
        self,
        *,
        model,
        epoch: int,
        epochs_trained: int,
        steps_trained_in_current_epoch: int,
        resume_from_checkpoint: str | None,
        **kwargs: Any,
    ):
        if self._train_sampler is None and (in_stream := self._facts.get("stream")):
            # The parent takes all of the training for the first pass through a stream, whose length it does not know.
            epochs_trained = in_stream["passes"]
            steps_trained_in_current_epoch = in_stream["steps"] * self.args.gradient_accumulation_steps
            if epoch < epochs_trained:
                return
        self._passes, self._pass_begins = epoch, self.state.global_step
        if resume_from_checkpoint is not None and epoch == epochs_trained:
            self._pass_begins -= steps_trained_in_current_epoch // self.args.gradient_accumulation_steps
            self._resume_epoch(model, epoch, **kwargs)
            if self.state.global_step >= self.state.max_steps:
                self.control.should_training_stop = True  # killed after its last step; the parent would do another
                return
        super()._run_epoch(
            model=model,
            epoch=epoch,
            epochs_trained=epochs_trained,
            steps_trained_in_current_epoch=steps_trained_in_current_epoch,
            resume_from_checkpoint=resume_from_checkpoint,
            **kwargs,
        )

    def _resume_epoch(
        self, model, epoch: int, *, trial, ignore_keys_for_eval, start_time: float, **_others: Any
    ) -> None:
        """Do what the parent leaves out when it resumes within an epoch."""
        if self._train_sampler is not None and self.shuffle_dataset:
            for _past in range(epoch):  # a new sampler begins with the order of the first epoch
                torch.randperm(self._train_sampler.num_samples, generator=self._train_sampler.generator)
        self._evaluate_if_due(model, trial, ignore_keys_for_eval, start_time)

    def _evaluate_if_due(self, model: Any, trial: Any, ignore_keys: list[str] | None, start_time: float) -> None:
        """Do the evaluation that belongs to the last step, if the run was interrupted before its end."""
        if not self._evaluation_is_due:
            return
        assert self._resumed is not None
        self._evaluation_is_due = False
        self._load_rng_state(str(self._resumed.folder))
        self.control.should_evaluate = True
        epoch = self.state.epoch or 0.0
        self._maybe_log_save_evaluate(self._tr_loss, None, model, trial, epoch, ignore_keys, start_time)
        self.control.should_evaluate = False
        self._name_best(trial)

    def _name_best(self, trial: Any) -> None:
        """Note the best checkpoint, as the parent does when it saves one: here it was saved before the evaluation."""
        step = self.state.best_global_step
        if step and (best := checkpoint(self._get_output_dir(trial=trial), step)).exists():
            self.state.best_model_checkpoint = str(best)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore as the parent does. If the number of processes has changed, give each rank a new seed instead."""
        processes = self.accelerator.num_processes
        if self._facts and self._facts["layout"]["processes"] != processes:
            seed = f"{self.args.seed}/{self._facts['step']}/{processes}"
            set_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:3], "big"), device_specific=True)
        else:
            super()._load_rng_state(checkpoint)
        self._random_state = RandomState(self.accelerator.device)

    # ---- between the steps

    def _begin_step(self) -> None:
        self._begun = self._snapshot(self._random_state or RandomState(self.accelerator.device))

    def _end_step(self) -> None:
        self._begun = None
        self._random_state = RandomState(self.accelerator.device)

    def _snapshot(self, random_state: RandomState) -> Snapshot:
        return Snapshot(self._state_now(), self.state.num_input_tokens_seen, random_state)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the parent does. In training, this changes nothing that is drawn or saved afterwards."""
        if not self.is_in_train:
            return super().evaluate(*args, **kwargs)
        before = self._snapshot(RandomState(self.accelerator.device))
        outer, self._begun = self._begun, self._begun or before
        was_evaluating, self._is_evaluating = self._is_evaluating, True  # one of several data sets
        try:
            found = super().evaluate(*args, **kwargs)
            self._evaluated_step = self.state.global_step
            return found
        finally:
            self._begun, self._is_evaluating = outer, was_evaluating
            before.random_state.put_back()

    # ---- saving

    def _save_checkpoint(self, model, trial) -> None:
        """Let the parent write its checkpoint, add what it leaves out, and declare it whole."""
        folder, main = self._checkpoint_now(trial), self.args.should_save
        if self._saved_step != self.state.global_step:  # else it was saved already, and nothing was learnt since
            write_together(self._ranks, folder, lambda: make_place(folder) if main else None)
            write_together(self._ranks, folder, lambda: self._write(folder, model, trial))
            facts = self._facts_now()
            write_together(self._ranks, folder, lambda: declare_whole(folder, facts) if main else None)
            self._saved_step = self.state.global_step
            self._remove_surplus(latest=folder)
        if self._interruption.leaving:
            self._leave(folder)

    def _write(self, folder: Path, model: Any, trial: Any) -> None:
        try:
            with self._as_begun(), self._parent_removes_none():
                super()._save_checkpoint(model, trial)
        except Exception as error:
            if self._others_wait_inside and is_about_writing(error):
                leave_at_once(folder, error)
            raise
        state = self._state_now() if self._begun is None else self._begun.state
        # Users may log anything beside completions; as text it can be read without trusting the file.
        torch.save({**state, "completions": json.dumps(state["completions"], default=str)}, folder / self._rank_file)
        if self.args.should_save:
            torch.save(self.args, folder / TRAINING_ARGS_NAME)  # with save_total_limit
            if self.args.sync_ref_model:
                torch.save(self.accelerator.unwrap_model(self.ref_model).state_dict(), folder / REFERENCE)

    @contextmanager
    def _as_begun(self) -> Iterator[None]:
        """Inside, in mid-step, random states and the token count are what they were when the step began."""
        if self._begun is None:
            yield
            return
        now, tokens_seen = RandomState(self.accelerator.device), self.state.num_input_tokens_seen
        self._begun.random_state.put_back()
        self.state.num_input_tokens_seen = self._begun.tokens_seen
        try:
            yield
        finally:
            now.put_back()
            self.state.num_input_tokens_seen = tokens_seen

    @contextmanager
    def _parent_removes_none(self) -> Iterator[None]:
        """Inside, the parent removes no older checkpoints: it would remove any folder of such a name, whoever made
        it and whatever it holds, before the new one is whole."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit

    @property
    def _others_wait_inside(self) -> bool:
        """Whether the parent's saving has collectives, in which the other ranks wait for one that fails."""
        shards = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return self.accelerator.num_processes > 1 and (shards or bool(self.state.best_global_step))

    def _facts_now(self) -> dict[str, Any]:
        micro_step = self._step if self._begun is None else self._begun.state["micro_step"]
        return {
            "step": self.state.global_step,
            "windows": micro_step // self._window,
            "inside_window": micro_step % self._window > 0,
            "stream": {"passes": self._passes, "steps": self.state.global_step - self._pass_begins},
            "evaluation_is_due": self._lacks_evaluation,
            "weights_alone": self.args.save_only_model,
            "layout": self._run.layout,
            "settings": self._run.settings,
        }

    @property
    def _lacks_evaluation(self) -> bool:
        """Whether an evaluation that belongs to this step is still to be done.

        It may have been put off at SIGTERM, be in progress, or be the one that follows the last step of an epoch.
        """
        state, args = self.state, self.args
        epoch = state.epoch or 0.0
        ends_epoch = epoch % 1 == 0 or state.global_step >= state.max_steps
        follows = args.eval_strategy == "epoch" and ends_epoch and epoch >= args.eval_delay
        missing = follows and self._evaluated_step != state.global_step
        return self._interruption.evaluation_is_due or self._is_evaluating or missing

    def _remove_surplus(self, latest: Path | None = None) -> None:
        """Keep to `save_total_limit`. At the end of a run even the latest may go, if only the best one stays."""
        best = self.state.best_model_checkpoint
        if self.args.should_save:
            kept = {*([latest] if latest else []), *([Path(best)] if best else [])}
            remove_surplus(Path(self.args.output_dir), self.args.save_total_limit, kept)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float):
        self._evaluate_if_due(
            self.model_wrapped, trial, None, start_time
        )  # interrupted in the last step of all epochs
        with self._parent_removes_none():
            output = super()._finalize_training(trial, num_train_samples, start_time)
        self._remove_surplus()
        return output

    def _checkpoint_now(self, trial: Any = None) -> Path:
        return checkpoint(self._get_output_dir(trial=trial), self.state.global_step)

    def _leave(self, folder: Path) -> None:
        """End the process before the parent ends the run as if it were done."""
        self.callback_handler.on_save(self.args, self.state, self.control)
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        logger.warning(
            f"Interrupted by SIGTERM after step {self.state.global_step} of {self.state.max_steps}. To resume from "
            f"{folder}, start the same run again with resume_from_checkpoint=True (--resume_from_checkpoint true)."
        )
        self.accelerator.wait_for_everyone()
        raise RunInterrupted

    # ---- files in the run's folder

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as the parent does, and enter what it writes in the run's own folder."""
        own = OwnFiles(self.args.output_dir)
        inside = output_dir is None or Path(output_dir).resolve() == own.folder.resolve()
        with own.entering(LOADED) if inside and self.args.should_save else nullcontext():
            super().save_model(output_dir, _internal_call)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push as the parent does: copy the policy from its checkpoint to the run's folder, and upload that."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            super()._push_from_checkpoint(checkpoint_folder)
            return
        own = OwnFiles(self.args.output_dir)
        copied = {file for pattern in LOADED for file in Path(checkpoint_folder).glob(pattern)}
        names = sorted(str(file.relative_to(checkpoint_folder)) for file in copied)
        own.claim(*names)
        super()._push_from_checkpoint(checkpoint_folder)
        own.add(*names)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the parent's model card, unless somebody else's README.md is in its place."""
        own = OwnFiles(self.args.output_dir)
        if own.foreign([MODEL_CARD]):
            logger.warning_once(
                f"{own.folder / MODEL_CARD} was not written by this run: it is kept, and no model card is written."
            )
            return
        with own.writing(MODEL_CARD) if self.is_world_process_zero() else nullcontext():
            super().create_model_card(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent does, and enter the table of completions that it writes."""
        own, name = OwnFiles(self.args.output_dir), COMPLETIONS.format(self.state.global_step)
        writes = self.accelerator.is_main_process and self.log_completions
        with own.writing(name) if writes else nullcontext():
            super().log(logs, start_time)


class StepCallback(TrainerCallback):
    """Calls one function when training begins, one when a step begins and one when it ends."""

    def __init__(self, train: Callable[[], None], begin: Callable[[], None], end: Callable[[], None]):
        self._train, self._begin, self._end = train, begin, end

    def on_train_begin(self, args, state, control, **kwargs):
        self._train()

    def on_step_begin(self, args, state, control, **kwargs):
        self._begin()

    def on_step_end(self, args, state, control, **kwargs):
        self._end()
