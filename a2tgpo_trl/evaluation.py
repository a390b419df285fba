"""a recipe's test set -> rollouts of its policy, by the trainer's own generation -> scores with intervals, and files.

    accelerate launch [--config_file ...] -m a2tgpo_trl.evaluation --config RECIPE [--model_name_or_path POLICY]

`a2tgpo eval` is the short form. The rows go in batches through the trainer's own rollout code: the same tools,
template, sampling settings and rewards as in training. Each batch draws from its own seed and is written down before
the next begins, so an evaluation that was cut off goes on where it stopped and ends with the same rollouts.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset

from .cli.launch import run_recipe
from .information_gain import evaluation_mode
from .plots import SCORES
from .progress import Display
from .recipe import Recipe
from .recipe_file import RecipeError
from .records import read_jsonl, write_jsonl
from .scores import Scores, score_table
from .trainer import A2TGPOTrainer


# What decides the rollouts, beside the policy, the task and how it is loaded.
SAMPLING = (
    "seed temperature top_p top_k min_p repetition_penalty generation_kwargs num_generations_eval "
    "max_completion_length max_tool_calling_iterations per_device_eval_batch_size chat_template_kwargs"
).split()


# ---- rollouts


def evaluate(
    trainer: A2TGPOTrainer,
    dataset: Dataset,
    file: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    on_progress: Callable[[int], None] = lambda number: None,
) -> list[dict[str, Any]]:
    """Roll out each row `num_generations_eval` times and write the records to `file`; all ranks get all of them.

    With `resume`, rows whose records are in the file already are not rolled out again.
    """
    main = trainer.accelerator.is_main_process
    done = read_jsonl(file) if resume and file.exists() else []
    per_batch = rows_per_batch(trainer)
    samples = trainer.num_generations_eval
    # A batch that is not complete is rolled out again, so that its seed gives all of it.
    kept = len(dataset) if len(done) >= samples * len(dataset) else len(done) // (per_batch * samples) * per_batch
    records = done[: kept * samples]
    if main:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(file, records)
    on_progress(len(records))
    with evaluation_mode(trainer.model):
        for first in range(kept, len(dataset), per_batch):
            rows = [{**dataset[i], "row": i} for i in range(first, min(first + per_batch, len(dataset)))]
            made = _roll_out(trainer, rows, per_batch, seed + first)
            if main:
                write_jsonl(file, made, mode="a")
            records += made
            on_progress(len(records))
    return records


def rows_per_batch(trainer: A2TGPOTrainer) -> int:
    """Rows that all ranks together roll out at once: what fills `per_device_eval_batch_size` on each."""
    rollouts = trainer.args.per_device_eval_batch_size * trainer.accelerator.num_processes
    return max(rollouts // trainer.num_generations_eval, 1)


def _roll_out(trainer: A2TGPOTrainer, rows: list[dict[str, Any]], per_batch: int, seed: int) -> list[dict[str, Any]]:
    """Records of these rows from all ranks. A short batch is filled up, since ranks gather equal numbers."""
    wanted = len(rows)
    filled = rows + [{**rows[-1], "row": None}] * (per_batch - wanted)
    repeated = [row for row in filled for _ in range(trainer.num_generations_eval)]
    share = math.ceil(len(repeated) / trainer.accelerator.num_processes)
    mine = repeated[trainer._local_rows(share)]
    caught: list[dict[str, Any]] = []
    with _seeded(seed + trainer.accelerator.process_index, trainer.accelerator.device), _caught_in(trainer, caught):
        trainer._generate_and_score_completions(mine)
    trainer._metrics["eval"].clear()  # these belong to no evaluation step of the training loop
    return [record for record in gather_object(caught) if record["row"] is not None]


@contextmanager
def _caught_in(trainer: A2TGPOTrainer, caught: list[dict[str, Any]]) -> Iterator[None]:
    before, trainer.on_rollouts = trainer.on_rollouts, caught.extend
    try:
        yield
    finally:
        trainer.on_rollouts = before


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws inside come from the seed; draws afterwards go on as if nothing had happened."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield


# ---- the command


def evaluate_recipe(recipe: Recipe) -> Scores:
    """Evaluate the recipe's policy on its test set."""
    rows = recipe.test_dataset
    if rows is None:
        raise RecipeError("There is nothing to evaluate on: name a dataset_test_split, or leave eval_rows above 0.")
    policy = Path(str(recipe.model.model_name_or_path)).name
    file = Path(recipe.args.output_dir, SCORES, f"{policy}.jsonl")
    resume = _same_settings(file.with_suffix(".settings.json"), recipe)
    display = Display(shown=recipe.args.process_index == 0)
    trainer = recipe.build_trainer()
    with display.bar(f"evaluating {policy}", len(rows) * trainer.num_generations_eval) as update:
        records = evaluate(trainer, rows, file, seed=recipe.args.seed, resume=resume, on_progress=update)
    scores = Scores.of(records, recipe.task.group_by)
    if trainer.accelerator.is_main_process:
        scores.write(file.with_suffix(".json"))
        display.line(score_table({policy: scores}, f"{len(rows)} questions"))
        display.line(f"Rollouts: {file}")
    return scores


def _same_settings(file: Path, recipe: Recipe) -> bool:
    """Whether there are rollouts to go on with, made by the same policy with the same settings."""
    now = json.loads(json.dumps(_settings(recipe), default=str))
    if file.exists() and not recipe.run.overwrite:
        before = json.loads(file.read_text())
        different = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
        if different:
            raise RecipeError(
                f"{file.parent} holds an evaluation with another {', '.join(different)}. Name another folder "
                "(--output_dir ...), or write over it (--overwrite true)."
            )
        return True
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(now, indent=2) + "\n")
    return False


def _settings(recipe: Recipe) -> dict[str, Any]:
    run = {key: value for key, value in dataclasses.asdict(recipe.run).items() if key != "overwrite"}
    sampling = {key: getattr(recipe.args, key) for key in SAMPLING}
    folder = Path(str(recipe.model.model_name_or_path))
    weights = {file.name: file.stat().st_mtime_ns for file in sorted(folder.glob("*.safetensors"))}
    return {**run, **sampling, **dataclasses.asdict(recipe.model), "weights": weights}


def main(words: Sequence[str] | None = None) -> int:
    """Evaluate what the command line says."""
    return run_recipe(evaluate_recipe, words)


if __name__ == "__main__":
    sys.exit(main())
