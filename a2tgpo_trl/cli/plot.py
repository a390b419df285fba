"""folders of finished runs -> one picture of their learning curves."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a finished run")
    parser.add_argument("-o", "--output", type=Path, default=Path("learning_curves.png"), help="default: %(default)s")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..report.plots import plot_runs

    names = [folder.resolve().name for folder in args.runs]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in args.runs]
    plot_runs(dict(zip(names, args.runs, strict=True)), args.output)
    print(args.output)
    return 0
