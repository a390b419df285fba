"""recipe and launch options -> the processes that run it: by `accelerate launch`, or this one alone."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..recipe import Recipe


def add_recipe_argument(parser: argparse.ArgumentParser) -> None:
    """A recipe, and what it is to say otherwise."""
    parser.add_argument("recipe", help="path of a recipe, or the name of one that comes with the package")
    parser.set_defaults(overrides=[])
    parser.epilog = "Any key of the recipe may follow, as --key value: --learning_rate 1e-5 --output_dir outputs/slow"


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """A recipe, and how many processes run it."""
    add_recipe_argument(parser)
    parser.add_argument("--config_file", help="configuration of Accelerate, for several processes or machines")
    parser.add_argument("--num_processes", type=int, help="processes on this machine, one per GPU")


def launch(module: str, args: argparse.Namespace) -> int:
    """Does not return: what is launched takes over, and its exit code is the command's."""
    from accelerate.commands.config.config_args import default_config_file

    from ..recipe_file import find_recipe

    words = ["--config", str(find_recipe(args.recipe)), *args.overrides]
    sys.stdout.flush()
    launcher = launcher_words(args.config_file, args.num_processes, Path(default_config_file).exists())
    os.execv(sys.executable, [sys.executable, *launcher, "-m", module, *words])


def launcher_words(config_file: str | None, num_processes: int | None, has_default_config: bool) -> list[str]:
    """Python's words before `-m MODULE`.

    One process that no configuration says anything about needs no launcher, and so keeps its exit code.
    """
    if not (config_file or num_processes or has_default_config):
        return []
    words = ["-m", "a2tgpo_trl.cli.launcher"]
    words += ["--config_file", config_file] if config_file else []
    words += ["--num_processes", str(num_processes)] if num_processes else []
    if not (config_file or has_default_config):
        words += [
            "--num_machines=1",
            "--mixed_precision=no",
            "--dynamo_backend=no",
        ]  # or it warns that they are not set
    return words


def run_recipe(action: Callable[["Recipe"], Any], words: Sequence[str] | None) -> int:
    """What a launched module does with its words.

    0: done; 1: it had to stop; 2: it cannot be done so; 75: interrupted by SIGTERM, with a checkpoint to go on from;
    130: interrupted by the user.
    """
    from ..failures import RunStopped
    from ..progress import quiet_libraries
    from ..recipe import read_recipe
    from ..recipe_file import RecipeError

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
