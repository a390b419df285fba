"""A trainer that goes on where it was interrupted: wires `Checkpoints` and `Interruption` into TRL's GRPO training.

train -> which checkpoint -> parent's loading -> what that leaves out -> steps -> parent's saving -> manifest
"""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from trl import GRPOTrainer

from ..errors import RunInterrupted
from ..rollout.vllm_engine import forget_weights
from .checkpoints import checkpoint
from .interruption import Interruption
from .own_files import LOADED, MODEL_CARD, OwnFiles


if TYPE_CHECKING:
    from .resume import Checkpoints

logger = get_logger(__name__)

COMPLETIONS = "completions/completions_{:05d}.parquet"  # where the parent writes those of a step


class Resumable(GRPOTrainer):
    """[`~trl.GRPOTrainer`] whose `train` may be interrupted at any moment. Who inherits makes the two parts."""

    _checkpoints: "Checkpoints"
    _interruption: Interruption

    def train(self, resume_from_checkpoint: bool | str | None = None, *args: Any, **kwargs: Any):
        """The parent's training, gone on with from a checkpoint that is whole and of the same run.

        Args:
            resume_from_checkpoint: True for the latest whole one in the output folder, or the folder of one.
        """
        chosen = self._checkpoints.choose(resume_from_checkpoint)
        forget_weights(self)
        with self._interruption.heard():
            return super().train(chosen, *args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any):
        self._train_sampler = super()._get_train_sampler(*args, **kwargs)
        return self._train_sampler

    def _run_epoch(self, *, model, epoch: int, epochs_trained: int, resume_from_checkpoint: str | None, **kwargs: Any):
        if resume_from_checkpoint is not None and epoch == epochs_trained:
            self._resume_epoch(model, epoch, resume_from_checkpoint, **kwargs)
            if self.state.global_step >= self.state.max_steps:
                self.control.should_training_stop = True  # killed after its last step; the parent would make another
                return
        super()._run_epoch(
            model=model,
            epoch=epoch,
            epochs_trained=epochs_trained,
            resume_from_checkpoint=resume_from_checkpoint,
            **kwargs,
        )

    def _resume_epoch(
        self, model, epoch: int, folder: str, *, trial, ignore_keys_for_eval, start_time: float, **_others: Any
    ) -> None:
        """What the parent leaves out when it goes on in an epoch."""
        if self._train_sampler is not None and self.shuffle_dataset:
            for _past in range(epoch):  # a sampler made anew begins with the order of the first epoch
                torch.randperm(self._train_sampler.num_samples, generator=self._train_sampler.generator)
        if self._checkpoints.evaluation_is_due:
            self._load_rng_state(folder)
            self.control.should_evaluate = True
            self._maybe_log_save_evaluate(self._tr_loss, None, model, trial, epoch, ignore_keys_for_eval, start_time)
            self.control.should_evaluate = False

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if not self._checkpoints.set_draws():
            super()._load_rng_state(checkpoint)
        self._checkpoints.mark_draws()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if not self.is_in_train:
            return super().evaluate(*args, **kwargs)
        with self._checkpoints.aside():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model, trial) -> None:
        folder = self._checkpoint_now(trial)

        def write() -> None:
            with self._checkpoints.alone_removes():
                super(Resumable, self)._save_checkpoint(model, trial)
            if self.args.should_save:
                torch.save(self.args, folder / TRAINING_ARGS_NAME)  # with the limit

        self._checkpoints.save(folder, write, evaluation_is_due=self._interruption.evaluation_is_due)
        if self._interruption.agreed:
            self._leave(folder)

    def _finalize_training(self, *args: Any, **kwargs: Any):
        with self._checkpoints.alone_removes():
            output = super()._finalize_training(*args, **kwargs)
        self._checkpoints.remove_surplus()
        return output

    def _checkpoint_now(self, trial: Any = None) -> Path:
        return checkpoint(self._get_output_dir(trial=trial), self.state.global_step)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The parent's. What it writes in the run's own folder is entered there."""
        own = OwnFiles(self.args.output_dir)
        inside = output_dir is None or Path(output_dir).resolve() == own.folder.resolve()
        with own.entering(LOADED) if inside and self.args.should_save else nullcontext():
            super().save_model(output_dir, _internal_call)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """The parent's, which copies the policy from its checkpoint to the run's folder and uploads that."""
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
        """The parent's, where no README.md of somebody else is in its place."""
        own = OwnFiles(self.args.output_dir)
        if own.foreign([MODEL_CARD]):
            logger.warning_once(f"{own.folder / MODEL_CARD} is not of this run: it stays, and there is no model card.")
            return
        with own.writing(MODEL_CARD) if self.is_world_process_zero() else nullcontext():
            super().create_model_card(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        own, name = OwnFiles(self.args.output_dir), COMPLETIONS.format(self.state.global_step)
        writes = self.accelerator.is_main_process and self.log_completions
        with own.writing(name) if writes else nullcontext():
            super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        with self._checkpoints.draws_to_save():
            super()._save_rng_state(output_dir)

    def _leave(self, folder: Path) -> None:
        """End the process before the parent ends the run as one that is done."""
        self.callback_handler.on_save(self.args, self.state, self.control)
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        logger.warning(
            f"Interrupted by SIGTERM after step {self.state.global_step} of {self.state.max_steps}. To go on from "
            f"{folder}, start the same again with resume_from_checkpoint=True (--resume_from_checkpoint true)."
        )
        self.accelerator.wait_for_everyone()
        raise RunInterrupted
