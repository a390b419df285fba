"""a recipe's test set -> rollouts of its policy, by the trainer's own generation -> scores with intervals, and files.

    a2tgpo eval quickstart                                    # the recipe's own policy
    a2tgpo eval eval_qa --model outputs/mine --seed 1         # another one; any key of the recipe may follow

The rows go in batches through the trainer's own rollout code, with the same tools, template, sampling settings and
rewards as in training. Each rollout draws from its own seed, and each batch is written to disk before the next begins.
If an evaluation is cut off or killed, the same command continues it where it stopped; with generation by transformers
it ends with the same rollouts. With other settings, weights or questions it refuses to continue. Several processes are
started as for training (`a2tgpo help launch`; by hand, `accelerate launch -m a2tgpo_trl.evaluation --config RECIPE`).

An evaluation writes to OUTPUT_DIR/evaluation/POLICY:

    scores.md        a table: a row for all questions and for each group, a column for each score
    scores.json      the same in numbers
    rollouts.jsonl   what was said, called, found and rewarded, a line for each rollout
    settings.json    what the rollouts depend on

Scores. Each is a mean over questions with its 95 % interval: Wilson's for exact_match, exact_number and math_equal,
and percentiles of 2,000 draws of the questions (bootstrap) for all others. Several rollouts of a question
(`num_generations_eval`) are averaged first. Besides rewards, it scores tool turns, tool calls that reached their tool,
and right answers per call, which are all right answers divided by all calls. There is a row for each value of a column
(`group_by`; for task qa, each set), and for each collection that a task defines (its `averages`; for task qa,
multi-hop, single-hop and all sets): once with equal weight for each question, so that a large set counts for more, and
once with equal weight for each set ("each set alike").

Two policies on the same questions are compared one question at a time: the difference with its interval, and for the
three scores above, if each question has one rollout, McNemar's exact test of the questions that only one of the two
has right. Name the
folders of two evaluations:

    a2tgpo paired outputs/start/evaluation/Qwen3-4B outputs/trained/evaluation/trained --by set

What a corpus can answer at all. A question counts as answerable if an accepted answer appears in a passage that is
found for the question itself, or for one of the titles that support it, if its set names them. A question whose answer
is yes or no counts as answerable if all of these titles are found. You need the questions, from the hub or as files
(--folder), and an index or a server (`a2tgpo help search`):

    a2tgpo answerable --sets multi-hop --train hotpotqa --url http://localhost:8000 -o answerable.jsonl

The file has a line for each question that was tried, and task qa reads it: with {answerable: answerable.jsonl} an
evaluation has separate rows for answerable questions and for the others, and adding {answerable_only: true} leaves the
others out of training. If a server is down, the command waits for it (--patience). After an interruption the same
command continues where it stopped.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset

from .config import A2TGPOConfig
from .errors import RecipeError
from .recipe.program import run_recipe
from .recipe.recipe import Recipe
from .report.progress import Display
from .report.scores import Scores, markdown, score_table
from .report.series import SCORES
from .resume.own_files import OwnFiles
from .resume.same_run import BOOKKEEPING
from .rollout.records import Record, read_jsonl, write_jsonl
from .rollout.trainer import ToolTrainer


# Settings that no rollout of an evaluation depends on. All others must be the same for an evaluation to be continued.
IRRELEVANT = (
    *BOOKKEEPING,
    *A2TGPOConfig.BOOKKEEPING,
    *("max_steps", "num_train_epochs", "learning_rate", "optim", "lr_scheduler_type", "warmup_steps", "weight_decay"),
    "resample_limit",
)

WRITTEN = ("rollouts.jsonl", "scores.json", "scores.md", "settings.json")
ANEW = "Name another folder (--output_dir ...), or overwrite it (--overwrite true)."


# ---- rollouts


def evaluate(
    trainer: ToolTrainer,
    dataset: Dataset,
    file: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    on_progress: Callable[[int], None] = lambda number: None,
) -> list[Record]:
    """Roll out each row `num_generations_eval` times and write the records to `file`; all ranks get all of them.

    With `resume`, rows whose records are in the file already are not rolled out again.
    """
    main, samples = trainer.accelerator.is_main_process, trainer.num_generations_eval
    per_batch = trainer.rows_per_batch
    records = from_main(trainer, lambda: _whole_batches(file, len(dataset), per_batch, samples) if resume else [])
    if main:
        file.parent.mkdir(parents=True, exist_ok=True)
        _keep(file, len(records))
    on_progress(len(records))
    trainer.forget_weights()  # `roll_out` does so only for the first row, and this may be a later one
    for first in range(len(records) // samples, len(dataset), per_batch):
        rows = [dataset[i] for i in range(first, min(first + per_batch, len(dataset)))]
        made = trainer.roll_out(rows, seed=seed, first=first)
        if main:
            write_jsonl(file, made, mode="a")
        records += made
        on_progress(len(records))
    return records


def _whole_batches(file: Path, rows: int, per_batch: int, samples: int) -> list[Record]:
    """The file's records up to its last complete batch; the rest is rolled out again, so that seeds determine all."""
    done = read_jsonl(file) if file.exists() else []
    if any(record["row"] != i // samples for i, record in enumerate(done)):
        raise RecipeError(f"{file} holds rollouts of a different test set or number of samples. Remove it.")
    kept = rows if len(done) >= rows * samples else len(done) // (per_batch * samples) * per_batch
    return done[: kept * samples]


def _keep(file: Path, records: int) -> None:
    """Cut the file in place after its first records; if killed here, none of these is lost."""
    with file.open("ab+") as lines:
        lines.seek(0)
        for _ in range(records):
            lines.readline()
        lines.truncate(lines.tell())


def from_main(trainer: ToolTrainer, make: Callable[[], Any]) -> Any:
    """Return what the main process makes on all processes; a `RecipeError` is raised on all of them too."""
    made: list[Any] = [None, None]
    if trainer.accelerator.is_main_process:
        try:
            made = [make(), None]
        except RecipeError as error:
            made = [None, str(error)]
    broadcast_object_list(made)
    if made[1] is not None:
        raise RecipeError(made[1])
    return made[0]


# ---- the command


def evaluate_recipe(recipe: Recipe) -> Scores:
    """Evaluate the recipe's policy on its test set; rollouts, scores and settings go to a folder of its name."""
    rows = recipe.test_dataset
    if rows is None:
        raise RecipeError("There is nothing to evaluate on: dataset_test_split is not set, or eval_rows is 0.")
    policy = Path(recipe.model.model_name_or_path).resolve().name
    run, folder = Path(recipe.args.output_dir), Path(recipe.args.output_dir, SCORES, policy)
    recipe.args.output_dir = str(folder)  # the policy's own folder may be where the results go
    display = Display(shown=recipe.args.process_index == 0, bars=not recipe.args.disable_tqdm)
    trainer = recipe.build_trainer(trains=False)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise RecipeError("Evaluation does not support sharding: start it without DeepSpeed and FSDP.")
    trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)  # device and precision, as in training
    settings = json.loads(json.dumps(_settings(recipe, trainer), default=str))
    resume, found = from_main(trainer, lambda: _begin(OwnFiles(run), policy, settings, recipe.run.overwrite))
    if found:
        display.line(f"{found} rollouts already exist.")
    with display.bar(f"evaluating {policy}", len(rows) * trainer.num_generations_eval) as update:
        file = folder / "rollouts.jsonl"
        records = evaluate(trainer, rows, file, seed=recipe.args.seed, resume=resume, on_progress=update)
    scores = Scores.of(records, recipe.task.group_by, recipe.task.averages)
    if trainer.accelerator.is_main_process:
        title = f"{policy}: {len(rows)} questions"
        scores.write(folder / "scores.json")
        (folder / "scores.md").write_text(markdown(scores, title))
        OwnFiles(run).add(*_files_of(policy))
        display.line(score_table({policy: scores}, f"{len(rows)} questions"))
        display.line(f"Rollouts: {file}")
    return scores


def _files_of(policy: str) -> list[str]:
    """The files that an evaluation writes, relative to the folder of a run."""
    return [f"{SCORES}/{policy}/{name}" for name in WRITTEN]


def _begin(own: OwnFiles, policy: str, settings: dict[str, Any], overwrite: bool) -> tuple[bool, int]:
    """Whether there are rollouts of the same policy and settings to continue from, and how many."""
    rollouts, scores, _, file = (own.folder / name for name in _files_of(policy))
    resume = rollouts.exists() and file.exists() and not overwrite
    if resume:
        before = _written(file)
        different = sorted(key for key in settings | before if settings.get(key) != before.get(key))
        if different:
            raise RecipeError(f"{rollouts.parent} holds an evaluation with a different {', '.join(different)}. {ANEW}")
    elif not overwrite and (rollouts.exists() or scores.exists()):
        raise RecipeError(f"{rollouts.parent} holds part of an evaluation, but not its settings. {ANEW}")
    # Rollouts of the same settings are continued, wherever they were cut off.
    own.claim(*_files_of(policy)[1 if resume else 0 :])
    if overwrite:
        own.remove(*_files_of(policy))
    if not resume:  # if resuming, keep the file: a kill while rewriting it would prevent another resume
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=2) + "\n")
    return resume, len(read_jsonl(rollouts)) if resume else 0


def _written(settings: Path) -> dict[str, Any]:
    try:
        return json.loads(settings.read_text())
    except ValueError as error:
        raise RecipeError(
            f"{settings} cannot be read ({error}), and nothing else holds the settings of its rollouts. {ANEW}"
        ) from error


def _settings(recipe: Recipe, trainer: ToolTrainer) -> dict[str, Any]:
    """All that rollouts depend on: settings, weights, rows, and the files of tools, rewards and environments."""
    given = {**recipe.args.to_dict(), **asdict(recipe.run), **asdict(recipe.model)}
    folder = Path(recipe.model.model_name_or_path)
    task = recipe.task
    code = [*task.tools, *task.reward_funcs, *([task.environment_factory] if task.environment_factory else [])]
    return {
        **{key: value for key, value in given.items() if key not in IRRELEVANT},
        "num_generations_eval": trainer.num_generations_eval,
        "num_processes": trainer.accelerator.num_processes,
        "weights": {
            f.name: f.stat().st_mtime_ns for f in sorted(folder.glob("*")) if f.suffix in (".safetensors", ".bin")
        },
        "test set": _digest(json.dumps(trainer.eval_dataset.to_list(), default=str)),
        "code of tools and rewards": {name: _digest(Path(name).read_text()) for name in sorted(_sources(code))},
    }


def _sources(things: Sequence[Any]) -> set[str]:
    things = [thing.func if isinstance(thing, partial) else thing for thing in things]  # a recipe gave it arguments
    named = [thing for thing in things if inspect.isroutine(thing) or inspect.isclass(thing)]
    return {str(inspect.getsourcefile(thing)) for thing in named}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(words: Sequence[str] | None = None) -> int:
    """Evaluate the recipe that the command line names."""
    return run_recipe(evaluate_recipe, words)


if __name__ == "__main__":
    sys.exit(main())
