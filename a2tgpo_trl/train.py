"""recipe -> policy before, training, policy after -> weights, scores, rollouts and a learning curve in one folder.

    accelerate launch [--config_file ...] -m a2tgpo_trl.train --config recipes/NAME.yaml [--key value ...]

`a2tgpo train NAME` is the short form.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from .errors import RecipeError
from .evaluation import evaluate, from_main
from .recipe.program import run_recipe
from .recipe.recipe import HELD_OUT, Recipe, whole_recipe
from .recording import FOLDER as ROLLOUTS
from .report.plots import CURVE, plot_runs
from .report.progress import Display, StepLines
from .report.scores import Scores, score_table
from .report.series import SCORES, STATE, WHOLE
from .resume.disk import told_if_not_written
from .resume.folders import TORN, checkpoints_of, set_aside, was_completed
from .resume.own_files import LOADED, OwnFiles
from .rollout.records import Record, read_jsonl
from .trainer import A2TGPOTrainer


# What a run writes in its folder. A run refuses a folder in which any of these files is not its own.
RESULTS = (WHOLE, CURVE, f"{SCORES}/before.*", f"{SCORES}/after.*", "completions/*", f"{ROLLOUTS}/*")
CHECKPOINTS = "checkpoint-*"


class HeldOut(TrainerCallback):
    """Evaluates before the first step, when the policy is already placed as in training (sharded, wrapped)."""

    def __init__(self, recipe: Recipe, display: Display):
        self._recipe, self._display = recipe, display
        self.scores: dict[str, Scores] = {}
        self.trainer: A2TGPOTrainer | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        file = _evaluation_file(self._recipe, "before")
        if state.global_step == 0:
            self.run("before")
        elif file.exists():  # a resumed run: its rollouts from before the first step are on file
            before = self._scores_of(read_jsonl(file))
            if self._recipe.test_dataset is not None and before.number == len(self._recipe.test_dataset):
                self.scores["before"] = before

    def run(self, when: str) -> None:
        """Roll out the test set, and write the rollouts and their scores."""
        rows, file = self._recipe.test_dataset, _evaluation_file(self._recipe, when)
        if rows is None:
            return
        assert self.trainer is not None
        own, written = OwnFiles(self._recipe.args.output_dir), [f"{SCORES}/{when}.jsonl", f"{SCORES}/{when}.json"]
        from_main(self.trainer, lambda: own.claim(*written))
        bar = self._display.bar(f"evaluating {when}", len(rows) * self.trainer.num_generations_eval)
        with told_if_not_written(Path(self._recipe.args.output_dir)), bar as update:
            records = evaluate(self.trainer, rows, file, seed=self._recipe.args.seed, on_progress=update)
            self.scores[when] = self._scores_of(records)
            if self.trainer.accelerator.is_main_process:
                self.scores[when].write(file.with_suffix(".json"))
                own.add(*written)

    def _scores_of(self, records: list[Record]) -> Scores:
        return Scores.of(records, self._recipe.task.group_by, self._recipe.task.averages)


def _evaluation_file(recipe: Recipe, when: str) -> Path:
    return Path(recipe.args.output_dir, SCORES, f"{when}.jsonl")


def train(recipe: Recipe) -> A2TGPOTrainer:
    """Train a recipe; everything it writes is in its `output_dir`."""
    folder = Path(recipe.args.output_dir)
    display = Display(shown=recipe.args.process_index == 0, bars=not recipe.args.disable_tqdm)
    held_out = HeldOut(recipe, display)
    trainer = recipe.build_trainer([held_out, StepLines(display)])
    held_out.trainer = trainer
    if recipe.words:
        trainer.run_facts["recipe"] = yaml.safe_load(whole_recipe(recipe.words))
    resume = recipe.args.resume_from_checkpoint
    for line in from_main(trainer, lambda: make_room(folder, recipe.run.overwrite, resume)):
        display.line(line)
    from_main(trainer, lambda: write_recipe(folder, recipe))
    for theirs in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(theirs)
    start = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=resume)
        seconds = time.perf_counter() - start
        with told_if_not_written(folder):
            save_policy(trainer, folder)  # before the evaluation, which may fail
        held_out.run("after")
    finally:
        display.close()
    if trainer.accelerator.is_main_process:
        _report(folder, recipe, held_out.scores, display, seconds)
    return trainer


def make_room(folder: Path, overwrite: bool, resume: bool | str | None) -> list[str]:
    """Refuse to mix two runs in a folder, or a run with files that are not its own. Returns lines for the user.

    With `overwrite`, only what the earlier run wrote is removed; without it, nothing is. A run that was interrupted
    before its first checkpoint cannot be resumed: its files are overwritten one by one.
    """
    own = OwnFiles(folder)
    if resume:
        # A resumed run reads its own files. Its folder may have been copied, or be older than its marker.
        own.refuse_foreign([*LOADED, STATE, CURVE, f"{SCORES}/after.*"])
        return []  # `A2TGPOTrainer.train` says where it resumes from
    own.refuse_foreign([*LOADED, "*.json", *RESULTS, CHECKPOINTS])
    checkpoints = any(map(was_completed, checkpoints_of(folder)))
    if overwrite:
        return _clear(own)
    if checkpoints or (folder / STATE).exists():
        further = ", or resume it (--resume_from_checkpoint true)" if checkpoints else ""
        raise RecipeError(
            f"{folder} already holds a run. Name another folder (--output_dir {folder}-2), or overwrite it "
            f"(--overwrite true){further}."
        )
    if not any(file for pattern in (*RESULTS, CHECKPOINTS) for file in folder.glob(pattern)):
        return []
    return [
        f"{folder} holds files of a run that was interrupted before its first checkpoint. This run starts from the "
        "beginning and overwrites them."
    ]


def _clear(own: OwnFiles) -> list[str]:
    """Remove what the earlier run wrote, and set aside what is then left in its checkpoints."""
    own.remove_drafts()
    own.remove(*own.all())
    kept = [set_aside(folder, TORN).name for folder in checkpoints_of(own.folder)]
    return [f"{name} keeps files that no complete checkpoint lists: remove it if you do not need it." for name in kept]


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the recipe with all that it is built on. A resumed run keeps the recipe that it began with."""
    if not recipe.words or (recipe.args.resume_from_checkpoint and (folder / WHOLE).exists()):
        return
    own = OwnFiles(folder)
    with told_if_not_written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        own.claim(WHOLE)
        (folder / WHOLE).write_text(whole_recipe(recipe.words, without=("overwrite", "resume_from_checkpoint")))
        own.add(WHOLE)


def save_policy(trainer: A2TGPOTrainer, folder: Path) -> None:
    """Write the policy and the trainer's log."""
    own, main = OwnFiles(folder), trainer.accelerator.is_main_process
    draft = from_main(trainer, own.draft)
    trainer.save_model(str(draft), _internal_call=True)  # pushes nothing: the hub gets the folder, not the draft
    if main:
        trainer.state.save_to_json(str(draft / STATE))
    from_main(trainer, lambda: own.take(draft))
    if trainer.args.push_to_hub:
        trainer.push_to_hub(commit_message="Model save", revision=trainer.args.hub_revision)  # saves it again


def _report(folder: Path, recipe: Recipe, scores: dict[str, Scores], display: Display, seconds: float) -> None:
    if scores:
        display.line(score_table(scores, f"{next(iter(scores.values())).number} {recipe.questions}"))
    own = OwnFiles(folder)
    own.refuse_foreign([CURVE])
    with own.writing(CURVE):
        plot_runs({folder.name: folder}, folder / CURVE, "held out" if recipe.questions == HELD_OUT else "evaluated")
    written = ["the policy", CURVE, *(f"{SCORES}/{when}.jsonl" for when in scores)]
    display.line(f"{seconds:.0f} seconds. Written to {folder}: {', '.join(written)}")


def main(words: Sequence[str] | None = None) -> int:
    """Train the recipe that the command line names."""
    return run_recipe(train, words)


if __name__ == "__main__":
    sys.exit(main())
