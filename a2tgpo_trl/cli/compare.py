"""a recipe, methods and seeds -> a run for each, and the areas under their held-out learning curves side by side."""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from glob import escape
from pathlib import Path

from .launching import add_recipe_argument


# What is not for the user to say: by the name of the option with its dashes as the parser takes them.
SET_BY_RUN = ("__output_dir", "__overwrite", "__eval_strategy", "__eval_steps", "__eval_on_start")

COMPARISON = "comparison.json"
DONE = "compared.json"  # of each run, in its folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_argument(parser)
    parser.add_argument("--credit", nargs="+", required=True, metavar="METHOD", help="the first is compared with")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--every", type=int, default=5, help="steps from one evaluation to the next; default: 5")
    parser.add_argument("--reward", help="held-out score; default: the task's first reward")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; default: 1")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/comparison"), help="default: %(default)s")
    parser.set_defaults(run=run)
    parser.epilog = "Any key of the recipe may follow, for all runs alike: --max_steps 20 --learning_rate 1e-5"


def run(args: argparse.Namespace) -> int:
    """0: compared; 1: a run failed, and its log says why."""
    from rich.console import Console

    from ..recipe.recipe_file import find_recipe
    from ..report.comparison import compare, comparison_table, read_curve
    from ..resume.own_files import OwnFiles
    from ..study.runs import LOG, identity

    taken = [word for word in args.overrides if word.partition("=")[0].replace("-", "_") in SET_BY_RUN]
    if taken:
        raise ValueError(
            f"{taken[0]}: each run has its own. Where they all go is --output, and --every how they are evaluated."
        )
    if len(set(map(_plain, args.credit))) < len(args.credit) or len(set(args.seeds)) < len(args.seeds):
        raise ValueError("--credit and --seeds: each method and each seed once, and methods of different names.")
    recipe = find_recipe(args.recipe)
    args.reward, questions = _check(recipe, args)
    runs = {(name, seed): args.output / f"{_plain(name)}-{seed}" for seed in args.seeds for name in args.credit}
    words = [_words(recipe, name, seed, runs[name, seed], args.every, args.overrides) for name, seed in runs]
    made = [identity(of_run) for of_run in words]
    own = OwnFiles(args.output)
    written = [COMPARISON, *(f"{folder.name}/{file}" for folder in runs.values() for file in (LOG, DONE))]
    own.refuse_foreign(map(escape, written))
    with own.writing(*written), ThreadPoolExecutor(args.jobs) as jobs:
        failed = [log for log in jobs.map(_train, words, made, runs.values()) if log is not None]
    if failed:
        print(f"These runs failed; their logs say why: {', '.join(map(str, failed))}", file=sys.stderr)
        return 1
    curves = {name: {seed: read_curve(runs[name, seed], args.reward) for seed in args.seeds} for name in args.credit}
    results = compare(curves)
    file = args.output / COMPARISON
    numbers = {name: {key: asdict(spread) for key, spread in row.items()} for name, row in results.items()}
    with own.writing(COMPARISON):
        file.write_text(json.dumps({"results": numbers, "curves": curves}, indent=2) + "\n")
    last = next(iter(curves[args.credit[0]].values()))[-1][0]
    title = (
        f"{recipe.stem}: {args.reward} on {questions}, {len(args.seeds)} seeds, evaluated every {args.every} steps to "
        f"{last}"
    )
    Console().print(comparison_table(results, title))
    print(file)
    return 0


def _check(recipe: Path, args: argparse.Namespace) -> tuple[str, str]:
    """What would fail in one of the runs is said before the first. The reward to compare by, and on what questions."""
    from ..credit import preset_of
    from ..credit.credit_pass import have_turn_rewards
    from ..preflight.loading import environment_kinds
    from ..recipe.recipe import read_recipe
    from ..report.progress import quiet_libraries

    quiet_libraries()
    for name in args.credit:
        words = _words(recipe, name, args.seeds[0], args.output, args.every, args.overrides)
        read = read_recipe(["--config", *words])
        needs = preset_of(read.args.credit_method).needs_turn_rewards and not read.args.turn_rewards
        if needs and not have_turn_rewards(environment_kinds(read.task)):  # which may make one of each
            raise ValueError(f"credit {name} needs turn rewards, and the recipe has none (turn_rewards).")
        known = [getattr(reward, "__name__", str(reward)) for reward in read.task.reward_funcs]
        if args.reward is None and not known:
            raise ValueError("--reward: the task has no reward function. Name the environment's reward: its class.")
        reward = args.reward or known[0]
        if reward not in known and read.task.environment_factory is None:  # which may give a reward of its own
            raise ValueError(f"--reward {reward}: the task has {', '.join(known)}.")
        if read.test_dataset is None:
            raise ValueError("there are no questions to compare on: name a dataset_test_split (train[:50]).")
    return reward, read.questions


def _plain(name: str) -> str:
    """A method's name in that of a folder: my_credit.py:own -> own"""
    return name.rpartition(":")[2]


def _words(recipe: Path, name: str, seed: int, folder: Path, every: int, overrides: Sequence[str]) -> list[str]:
    evaluate = ["--eval_strategy", "steps", "--eval_steps", str(every), "--eval_on_start", "true"]
    words = ["--credit", name, "--seed", str(seed), "--output_dir", str(folder), "--overwrite", "true"]
    return [str(recipe), *evaluate, *overrides, *words]


def _train(words: Sequence[str], made: str, folder: Path) -> Path | None:
    """Train, unless the same was done before. The log, if it failed."""
    from ..study.runs import LOG, train

    done = folder / DONE
    if done.is_file() and done.read_text() == made:
        print(f"{folder} is there already.", flush=True)
        return None
    done.unlink(missing_ok=True)
    code = train(words, folder)
    print(f"{folder}: {'trained' if code == 0 else f'exit code {code}'}", flush=True)
    if code == 0:
        done.write_text(made)
    return None if code == 0 else folder / LOG
