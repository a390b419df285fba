"""recipe and policy -> rollouts of the test set -> a table of scores with intervals, and the rollouts beside it."""

import argparse

from .launching import add_launch_arguments, launch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_launch_arguments(parser)
    parser.add_argument(
        "--model",
        "--model_name_or_path",
        dest="model",
        help="the policy: a folder, or a name on the hub (default: the recipe's)",
    )
    parser.epilog = f"{parser.epilog}. a2tgpo help evaluation says more."
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.model is not None:
        args.overrides = [*args.overrides, "--model_name_or_path", args.model]
    return launch("a2tgpo_trl.evaluation", args)
