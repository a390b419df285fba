"""scores of evaluations -> a row of a table in a Markdown file, beside the paper's."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="Markdown file with the table, such as recipes/qa/README.md")
    parser.add_argument("model", help="model at the head of the table, such as Qwen3-4B")
    parser.add_argument("method", help="method of the row, such as DAPO")
    parser.add_argument(
        "scores",
        nargs="+",
        type=Path,
        metavar="SCORES",
        help="scores.json of an evaluation; several must have different sets",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..report.paper_table import fill

    print(fill(args.file, args.model, args.method, args.scores))
    return 0
