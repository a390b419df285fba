"""the folders of two evaluations of the same questions -> differences, with intervals and McNemar's exact test."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path


ROLLOUTS = "rollouts.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, help="folder of an evaluation, or its rollouts (.jsonl)")
    parser.add_argument(
        "second", type=Path, help="another one of the same questions, which is compared with the first"
    )
    parser.add_argument("--json", action="store_true", help="write the differences as JSON")
    parser.epilog = "a2tgpo paired outputs/start/evaluation/policy outputs/trained/evaluation/trained"
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from ..report.paired import difference_table, differences
    from ..rollout.records import read_jsonl

    files = [folder if folder.is_file() else folder / ROLLOUTS for folder in (args.first, args.second)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"There is no {file}. Name the folder of an evaluation, where a2tgpo eval says it is.")
    first, second = map(read_jsonl, files)
    found = differences(first, second)
    if args.json:
        json.dump({name: asdict(one) for name, one in found.items()}, sys.stdout, indent=2)
        print()
        return 0
    title = f"second less first, on {len({record['row'] for record in first})} questions"
    Console().print(difference_table(found, ["first", "second"], title), highlight=False)
    return 0
