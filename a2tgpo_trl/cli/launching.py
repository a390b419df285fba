"""recipe and launch options -> the processes that run it."""

import argparse
import os
import sys


# How long threads of one operation wait for each other before they sleep. The default is some milliseconds, during
# which they hold the core that the last of them needs: beside one other busy process, a step of the quickstart on two
# cores takes ten times as long. An operation of a large model takes longer than either.
PATIENCE = {"GOMP_SPINCOUNT": "5000"}


def add_recipe_argument(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for a recipe, its bases and its overrides."""
    parser.add_argument("recipe", help="path of a recipe, or the name of one that comes with the package")
    parser.add_argument(
        "--base", nargs="+", metavar="RECIPE", help="recipes to build it on, instead of the base that it names"
    )
    parser.set_defaults(overrides=[])
    parser.epilog = (
        "Any key of the recipe may follow, as --key value: --learning_rate 1e-5 --output_dir outputs/slow. "
        "`a2tgpo train --help` lists the keys"
    )


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for a recipe and the processes that run it."""
    add_recipe_argument(parser)
    parser.add_argument(
        "--config_file",
        help="configuration of Accelerate: a path, or a name in the package (zero2, cpu_ddp ...)",
    )
    parser.add_argument("--num_processes", type=int, help="total processes on all machines, one per GPU")


def launch(module: str, args: argparse.Namespace) -> int:
    """Replace this process by the launched one, whose exit code is the command's. Does not return."""
    from ..launch.processes import VISIBLE, start_here
    from ..recipe.recipe_file import find_launch_config, find_recipe

    words = ["--config", str(find_recipe(args.recipe)), *args.overrides]
    config_file = find_launch_config(args.config_file) if args.config_file else None
    start = start_here(config_file, args.num_processes)
    if [*start.variables] == [VISIBLE] and args.num_processes is None:  # a rank of SLURM has other variables too
        print(
            f"Starting one process, on one of this machine's GPUs ({VISIBLE}={start.variables[VISIBLE]}). To start "
            "more, give --num_processes.",
            file=sys.stderr,
        )
    sys.stdout.flush()
    environment = {**PATIENCE, **os.environ, **start.variables}
    os.execve(sys.executable, [sys.executable, *start.words, "-m", module, *words], environment)
