"""a recipe, what it is built on and what the command line overrides -> one recipe with all keys that are set."""

import argparse

from .launching import add_recipe_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..recipe.recipe import whole_recipe

    print(whole_recipe(["--config", args.recipe, *args.overrides]), end="")
    return 0
