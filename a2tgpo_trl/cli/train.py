"""recipe -> a trained policy, its scores before and after, and a learning curve."""

import argparse

from .launching import add_launch_arguments, launch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_launch_arguments(parser)
    parser.set_defaults(run=lambda args: launch("a2tgpo_trl.train", args))
