"""recipe and launch options -> the processes that run it, started as `processes.py` says."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..recipe.recipe import Recipe
    from .processes import Start


def add_recipe_argument(parser: argparse.ArgumentParser) -> None:
    """A recipe, and what it is to say otherwise."""
    parser.add_argument("recipe", help="path of a recipe, or the name of one that comes with the package")
    parser.set_defaults(overrides=[])
    parser.epilog = "Any key of the recipe may follow, as --key value: --learning_rate 1e-5 --output_dir outputs/slow"


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
    from ..recipe.recipe_file import find_launch_config, find_recipe

    words = ["--config", str(find_recipe(args.recipe)), *args.overrides]
    config_file = find_launch_config(args.config_file) if args.config_file else None
    start = _start(config_file, args.num_processes)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *start.words, "-m", module, *words], {**os.environ, **start.variables})


def _start(config_file: Path | None, num_processes: int | None) -> "Start":
    from accelerate.commands.config.config_args import default_config_file

    from .processes import choose_start, count_accelerators, is_slurm_rank, rank_of_slurm

    if config_file is None and Path(default_config_file).exists():
        config_file = Path(default_config_file)
    if is_slurm_rank(os.environ):
        if config_file is None:
            raise ValueError(
                "srun has started several tasks on this machine, and without a configuration each would be a run of "
                "its own. Give --config_file (multi_gpu, zero3, ...), or srun --ntasks-per-node=1."
            )
        return rank_of_slurm(config_file, num_processes, os.environ)
    return choose_start(config_file, num_processes, count_accelerators())


def run_recipe(action: Callable[["Recipe"], Any], words: Sequence[str] | None) -> int:
    """What a launched module does with its words.

    0: done; 1: it had to stop; 2: it cannot be done so; 75: interrupted by SIGTERM, with a checkpoint to go on from;
    130: interrupted by the user.
    """
    from ..errors import RecipeError, RunStopped
    from ..recipe.recipe import read_recipe
    from ..report.progress import quiet_libraries

    quiet_libraries()
    try:
        action(read_recipe(sys.argv[1:] if words is None else words))
    except RecipeError as error:  # anything else keeps its trace
        print(f"a2tgpo: error: {error}", file=sys.stderr)
        return 2
    except RunStopped as stopped:  # all processes stop, for the same reason
        if os.environ.get("RANK", "0") == "0":
            print(f"a2tgpo: stopped: {stopped}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("a2tgpo: interrupted. What was written is in the output folder.", file=sys.stderr)
        return 130
    return 0
