"""recipe -> policy before, training, policy after -> weights, scores, rollouts and a learning curve in one folder.

    accelerate launch [--config_file ...] -m a2tgpo_trl.train --config recipes/NAME.yaml [--key value ...]

`a2tgpo train NAME` is the short form.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from .cli.launch import run_recipe
from .evaluation import evaluate
from .plots import SCORES, STATE, plot_runs
from .progress import Display, StepLines
from .recipe import Recipe
from .recipe_file import RecipeError
from .records import read_jsonl
from .scores import Scores, score_table
from .trainer import A2TGPOTrainer


class HeldOut(TrainerCallback):
    """Evaluates before the first step, when the policy is where training will have it (sharded, wrapped)."""

    def __init__(self, recipe: Recipe, display: Display):
        self._recipe, self._display = recipe, display
        self.scores: dict[str, Scores] = {}
        self.trainer: A2TGPOTrainer | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        file = _evaluation_file(self._recipe, "before")
        if state.global_step == 0:
            self.run("before")
        elif file.exists():  # a resumed run: what it was before its first step is on record
            self.scores["before"] = Scores.of(read_jsonl(file), self._recipe.task.group_by)

    def run(self, when: str) -> None:
        """Roll out the test set, and write the rollouts and their scores."""
        rows, file = self._recipe.test_dataset, _evaluation_file(self._recipe, when)
        if rows is None:
            return
        assert self.trainer is not None
        with self._display.bar(f"evaluating {when}", len(rows) * self.trainer.num_generations_eval) as update:
            records = evaluate(self.trainer, rows, file, seed=self._recipe.args.seed, on_progress=update)
        self.scores[when] = Scores.of(records, self._recipe.task.group_by)
        if self.trainer.accelerator.is_main_process:
            self.scores[when].write(file.with_suffix(".json"))


def _evaluation_file(recipe: Recipe, when: str) -> Path:
    return Path(recipe.args.output_dir, SCORES, f"{when}.jsonl")


def train(recipe: Recipe) -> A2TGPOTrainer:
    """Train a recipe; everything it makes is in its `output_dir`."""
    folder = Path(recipe.args.output_dir)
    if (folder / STATE).exists() and not (recipe.run.overwrite or recipe.args.resume_from_checkpoint):
        raise RecipeError(
            f"{folder} holds a finished run. Name another folder (--output_dir {folder}-2), or write over it "
            "(--overwrite true)."
        )
    display = Display(shown=recipe.args.process_index == 0)
    held_out = HeldOut(recipe, display)
    trainer = recipe.build_trainer([held_out, StepLines(display)])
    held_out.trainer = trainer
    for theirs in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(theirs)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=recipe.args.resume_from_checkpoint)
    seconds = time.perf_counter() - start
    held_out.run("after")
    trainer.save_model(recipe.args.output_dir)
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        _report(folder, recipe, held_out.scores, display, seconds)
    return trainer


def _report(folder: Path, recipe: Recipe, scores: dict[str, Scores], display: Display, seconds: float) -> None:
    if scores:
        display.line(score_table(scores, f"{_evaluated(scores)} held-out questions"))
    plot_runs({folder.name: folder}, folder / "learning_curve.png")
    written = ["learning_curve.png", *(f"{SCORES}/{when}.jsonl" for when in scores), "model.safetensors"]
    display.line(f"{seconds:.0f} seconds. Written to {folder}: {', '.join(written)}")


def _evaluated(scores: dict[str, Scores]) -> int:
    return next(iter(next(iter(scores.values())).everything.values())).number


def main(words: Sequence[str] | None = None) -> int:
    """Train what the command line says."""
    return run_recipe(train, words)


if __name__ == "__main__":
    sys.exit(main())
