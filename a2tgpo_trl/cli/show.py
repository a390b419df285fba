"""files of rollouts -> the rollouts, turn by turn, on a terminal."""

import argparse
import io
import re
import sys
from pathlib import Path

from .pipe import until_closed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "places",
        nargs="+",
        type=Path,
        metavar="ROLLOUTS",
        help="files, or folders of runs and evaluations",
    )
    parser.add_argument(
        "-n", "--number", type=int, default=3, help="number of rollouts (or prompts); default: %(default)s"
    )
    parser.add_argument("--failed", action="store_true", help="only those that were not right")
    parser.add_argument(
        "--solved-and-failed", action="store_true", help="only rollouts of prompts both solved and failed"
    )
    parser.add_argument("--worst-gain", action="store_true", help="those with the lowest gain of a turn first")
    parser.add_argument("--grep", metavar="PATTERN", help="only those whose text matches this")
    parser.add_argument("--side-by-side", action="store_true", help="all rollouts of their prompts beside each other")
    parser.add_argument("--full", action="store_true", help="show long texts in full")
    parser.epilog = (
        "Training writes rollouts with record_every (`a2tgpo train quickstart --record_every 5`); a2tgpo eval always "
        "writes them. Example: a2tgpo show outputs/quickstart --solved-and-failed --side-by-side"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.number < 1:
        raise ValueError("--number must be at least 1.")
    try:
        re.compile(args.grep or "")
    except re.error as error:
        raise ValueError(f"--grep: {args.grep!r} is not a valid pattern: {error}.") from error
    with until_closed():
        show(args)
    return 0


def show(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ..rollout.reading import as_turns, by_prompt, chosen, prompt_of, read_places, side_by_side

    records = read_places(args.places)
    asked = {name: getattr(args, name) for name in ("failed", "solved_and_failed", "grep", "worst_gain")}
    found = chosen(records, **asked)

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the program

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not support all characters
    console = Pipe(soft_wrap=not args.side_by_side, highlight=False, markup=False, emoji=False)
    if args.side_by_side:
        groups = by_prompt(records)
        prompts = list(dict.fromkeys(map(prompt_of, found)))
        for prompt in prompts[: args.number]:
            console.print(side_by_side(groups[prompt], console.width))
        left = len(prompts) - args.number
    else:
        for record in found[: args.number]:
            console.print(as_turns(record, args.full))
        left = len(found) - args.number
    if left > 0:
        print(f"{left} more: --number {args.number + left} shows all.", file=sys.stderr)
    if not found:
        print(f"None of {len(records)} rollouts matches.", file=sys.stderr)
