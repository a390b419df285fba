"""folders of evaluations with gains -> the gains of turns that found what they needed, and of the others."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from .paired import read_rollouts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, help="folders of evaluations, or their rollouts (.jsonl)")
    parser.add_argument(
        "--answer", metavar="COLUMN", default="answer", help="column of the answers (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="write the means as JSON")
    parser.epilog = (
        "Example: a2tgpo eval quickstart --eval_gains true --output_dir outputs/gains, then a2tgpo gains "
        "outputs/gains/evaluation/policy."
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from ..report.gains import gains_of, gains_table

    found = {str(folder): gains_of(read_rollouts(folder), args.answer) for folder in args.folders}
    if args.json:
        json.dump({name: asdict(gains) for name, gains in found.items()}, sys.stdout, indent=2)
        print()
        return 0
    console = Console(markup=False, emoji=False)
    console.print(gains_table(found, "Information gain of tool turns"), highlight=False)
    return 0
