"""a recipe, methods and seeds -> a study of them: its file, its runs, its report."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .option_types import at_least


if TYPE_CHECKING:
    from ..study.study import Study

WRITTEN_BY = "# By `a2tgpo compare`; `a2tgpo study` goes on with it.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="path of a recipe, or the name of one that comes with the package")
    parser.add_argument(
        "--credit", nargs="+", required=True, metavar="METHOD", help="methods; the others are compared with the first"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2; fewer than five decide nothing"
    )
    parser.add_argument("--every", type=int, default=5, help="steps from one evaluation to the next; default: 5")
    parser.add_argument("--reward", help="held-out score; default: the task's first reward")
    parser.add_argument("--jobs", type=at_least(1), default=1, help="concurrent runs, one thread each; default: 1")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/comparison"), help="default: %(default)s")
    parser.set_defaults(run=run, overrides=[], base=None)
    parser.epilog = (
        "Any key of the recipe may follow, for all runs: --max_steps 20 --learning_rate 1e-5. "
        "`a2tgpo help studies` describes the results."
    )


def run(args: argparse.Namespace) -> int:
    """Compare the methods. Return 0, or 1 if a run failed; its log says why."""
    from ..study.study import make_study
    from .study import check, check_places, conduct

    content = content_of(args)
    study = make_study(args.output / f"{Path(args.recipe).stem}.yaml", content)
    check(study)
    check_places(study)
    write(study, content)
    return conduct(study, args.output, jobs=args.jobs, keep=True)


def content_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the content of the study's file: a cell per method; the others are compared with the first."""
    from ..recipe.arguments import RecipeParser
    from ..study.study import SET_BY_STUDY

    cells = {_plain(name): {"credit": name} for name in args.credit}
    if len(cells) < len(args.credit):
        raise ValueError("--credit: name each method once, and give methods of your own different names.")
    if any(word.partition("=")[0] == "--base" for word in args.overrides):
        raise ValueError(
            "--base: a comparison takes a single recipe. Copy it, and name in the copy what it is built on (base)."
        )
    settings = RecipeParser().parse_alone(args.overrides)
    for key in settings.keys() & {*SET_BY_STUDY}:
        raise ValueError(
            f"a2tgpo compare sets --{key} itself for each run. Use --output for the folder of all runs, --every for "
            "the steps between evaluations, and --seeds."
        )
    file = Path(args.recipe)
    return {
        "recipe": str(file.resolve()) if file.is_file() else args.recipe,
        "settings": settings,
        "every": args.every,
        "reward": args.reward or _first_reward(args),
        "seeds": args.seeds,
        "cells": cells,
    }


def _plain(name: str) -> str:
    """Return a method's name as a cell's: methods/my_credit.py:own -> own"""
    return Path(name.rpartition(":")[2]).name


def _first_reward(args: argparse.Namespace) -> str:
    from ..recipe.recipe import read_recipe
    from ..recipe.recipe_file import find_recipe
    from ..report.progress import quiet_libraries

    quiet_libraries()
    words = ["--config", str(find_recipe(args.recipe)), *args.overrides, "--credit", args.credit[0]]
    names = read_recipe(words).task.reward_names
    if not names:
        raise ValueError(
            "--reward: the task has no reward function. Name the environment's reward, which is its class name."
        )
    return names[0]


def write(study: "Study", content: dict[str, Any]) -> None:
    """Write the study's file. Results of methods that it no longer has are kept, for when it has them again."""
    if study.file.exists() and not study.file.read_text().startswith(WRITTEN_BY):
        raise ValueError(
            f"{study.file} was not written by a comparison, and would be overwritten. Name another --output."
        )
    study.file.parent.mkdir(parents=True, exist_ok=True)
    study.file.write_text(WRITTEN_BY + yaml.safe_dump(content, sort_keys=False))
