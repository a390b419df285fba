"""the folders of two evaluations of the same questions -> differences, with intervals and McNemar's exact test."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .pipe import print_table


ROLLOUTS = "rollouts.jsonl"
OF_AN_EVALUATION = ("row", "rewards")  # keys of its records that all readers need


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, help="folder of an evaluation, or its rollouts (.jsonl)")
    parser.add_argument("second", type=Path, help="another evaluation of the same questions, compared with the first")
    parser.add_argument("--by", metavar="COLUMN", help="compare for each value of this column too, such as set")
    parser.add_argument("--json", action="store_true", help="write the differences as JSON")
    parser.epilog = (
        "Example: a2tgpo paired outputs/start/evaluation/Qwen3-4B outputs/trained/evaluation/trained --by set. "
        "These are the folders of rollouts that a2tgpo eval prints; both policies must have been asked the same "
        "questions. a2tgpo help evaluation says more."
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..report.paired import Paired, difference_table

    needed = (*OF_AN_EVALUATION, "prompt", "tool_turns")
    first, second = (read_rollouts(folder, needed) for folder in (args.first, args.second))
    found = Paired.of(first, second, args.by)
    if args.json:
        json.dump(asdict(found), sys.stdout, indent=2)
        print()
        return 0
    title = f"second minus first, on {len({record['row'] for record in first}):,} questions"
    print_table(difference_table(found, ["first", "second"], title))
    return 0


def read_rollouts(place: Path, needed: Sequence[str] = OF_AN_EVALUATION) -> Sequence[Mapping[str, Any]]:
    """Return the records of an evaluation; raise an error if one lacks a key that is needed."""
    from ..rollout.records import read_jsonl

    file = place if place.is_file() else place / ROLLOUTS
    if not file.is_file():
        raise ValueError(f"There is no {file}. Name the folder of an evaluation, which a2tgpo eval prints.")
    try:
        records = read_jsonl(file)
    except ValueError as error:
        raise ValueError(f"{file} is not a file of rollouts: {error}.") from error
    if not records or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{file} holds no rollouts of an evaluation. Name the folder of one.")
    for line, record in enumerate(records, start=1):
        missing = ", ".join(key for key in needed if key not in record)
        if missing:
            raise ValueError(
                f"{file} holds no rollouts of an evaluation: line {line} has no {missing}. Name the folder of one."
            )
    return records
