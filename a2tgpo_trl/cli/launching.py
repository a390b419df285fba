"""recipe and launch options -> the processes that run it."""

import argparse
import os
import sys


# How long threads of one operation wait for each other before they sleep. By default some milliseconds, in which they
# hold the very core that the last of them needs: beside one other busy process, a step of the quickstart on two cores
# takes ten times as long. An operation of a large model takes longer than either.
PATIENCE = {"GOMP_SPINCOUNT": "5000"}


def add_recipe_argument(parser: argparse.ArgumentParser) -> None:
    """A recipe, and what it is to say otherwise."""
    parser.add_argument("recipe", help="path of a recipe, or the name of one that comes with the package")
    parser.add_argument(
        "--base", nargs="+", metavar="RECIPE", help="what it is to be built on, in place of the base that it names"
    )
    parser.set_defaults(overrides=[])
    parser.epilog = (
        "Any key of the recipe may follow, as --key value: --learning_rate 1e-5 --output_dir outputs/slow. "
        "`a2tgpo train --help` lists the keys"
    )


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """A recipe, and how many processes run it."""
    add_recipe_argument(parser)
    parser.add_argument(
        "--config_file",
        help="configuration of Accelerate, by its path or its name in the package (zero2, cpu_ddp ...)",
    )
    parser.add_argument("--num_processes", type=int, help="processes on all machines together, one per GPU")


def launch(module: str, args: argparse.Namespace) -> int:
    """Does not return: what is launched takes over, and its exit code is the command's."""
    from ..launch.processes import VISIBLE, start_here
    from ..recipe.recipe_file import find_launch_config, find_recipe

    words = ["--config", str(find_recipe(args.recipe)), *args.overrides]
    config_file = find_launch_config(args.config_file) if args.config_file else None
    start = start_here(config_file, args.num_processes)
    if [*start.variables] == [VISIBLE] and args.num_processes is None:  # a rank of SLURM has others
        print(
            f"One process, on one of this machine's GPUs ({VISIBLE}={start.variables[VISIBLE]}). --num_processes, "
            "before the recipe's keys, starts more.",
            file=sys.stderr,
        )
    sys.stdout.flush()
    environment = {**PATIENCE, **os.environ, **start.variables}
    os.execve(sys.executable, [sys.executable, *start.words, "-m", module, *words], environment)
