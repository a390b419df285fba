"""recipe and policy -> rollouts of the test set -> a table of scores with intervals, and the rollouts beside it."""

import argparse

from .launching import add_launch_arguments, launch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_launch_arguments(parser)
    parser.epilog = (
        f"{parser.epilog}. --model_name_or_path names the policy; without it, the recipe's own is evaluated."
    )
    parser.set_defaults(run=lambda args: launch("a2tgpo_trl.evaluation", args))
