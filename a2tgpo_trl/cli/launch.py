"""recipe and launch options -> `accelerate launch -m MODULE --config RECIPE --key value ...`, in place of this."""

import argparse
import os
import sys


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """A recipe, how many processes run it, and what it is to say otherwise."""
    parser.add_argument("recipe", help="path of a recipe, or the name of one that comes with the package")
    parser.add_argument("--config_file", help="configuration of Accelerate, for several processes or machines")
    parser.add_argument("--num_processes", type=int, help="processes on this machine, one per GPU (default: 1)")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="any key of the recipe, as --key value")


def launch(module: str, args: argparse.Namespace) -> int:
    """Does not return: the launcher takes over, and its exit code is the command's."""
    from ..recipe import find_recipe

    words = ["--config", str(find_recipe(args.recipe)), *args.overrides]
    sys.stdout.flush()
    os.execv(
        sys.executable,
        [sys.executable, "-m", "accelerate.commands.launch", *launch_options(args), "-m", module, *words],
    )


def launch_options(args: argparse.Namespace) -> list[str]:
    """The given configuration; without one, each of the values that Accelerate would warn are not set."""
    given = ["--config_file", args.config_file] if args.config_file else []
    if args.config_file and args.num_processes is None:
        return given
    given += ["--num_processes", str(args.num_processes or 1)]
    return given if args.config_file else ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", *given]
