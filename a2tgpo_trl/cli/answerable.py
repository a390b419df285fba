"""sets of questions, an index or a server -> which questions its corpus can answer, as a file for task qa."""

import argparse
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..report.progress import Display
    from ..search.tool import Search
    from ..tasks.qa.questions import Question


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sets", nargs="+", default=["multi-hop"], help="sets, named as in task qa (default: multi-hop)"
    )
    parser.add_argument(
        "--train", nargs="+", default=[], metavar="SET", help="sets whose training questions are tried too"
    )
    parser.add_argument("--folder", type=Path, help="folder with SET/SPLIT.jsonl (default: the hub)")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--url", help="address of a search server")
    place.add_argument("--index", help="folder of an index")
    parser.add_argument("--top-k", type=int, default=10, help="passages per query (default: 10)")
    parser.add_argument(
        "--patience", type=float, default=120.0, help="seconds to wait for a server that is down (default: 120)"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("answerable.jsonl"), help="default: %(default)s")
    parser.epilog = (
        "Example: a2tgpo answerable --sets multi-hop --train hotpotqa --url http://localhost:8000. A recipe takes the "
        "file as task_kwargs: {answerable: answerable.jsonl, answerable_only: true}. a2tgpo help evaluation says more."
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..report.progress import Display
    from ..search.tool import passages_of
    from ..tasks.qa.answerable import check_questions, write_answerable
    from ..tasks.qa.questions import load_split
    from ..tasks.qa.sets import SETS, named

    if args.top_k < 1:
        raise ValueError(f"--top-k must be at least 1; got {args.top_k}.")
    if not 0 <= args.patience < float("inf"):
        raise ValueError(f"--patience must be a number of seconds, at least 0; got {args.patience:g}.")
    if not args.output.parent.is_dir() or args.output.is_dir():
        raise ValueError(f"--output must name a file in an existing folder; got {args.output}.")
    find = passages_of(url=args.url, index=args.index, top_k=args.top_k)
    find(["a"], 1)  # a wrong address is reported immediately, not waited for
    splits = [(name, SETS[name].test) for name in named(args.sets)] + [(name, "train") for name in named(args.train)]
    parts = {f"{name}, {split}": load_split(name, split, args.folder) for name, split in splits}
    questions = [question for part in parts.values() for question in part]
    check_questions(questions)
    display = Display()
    try:
        verdicts = try_all(questions, find, args, display)
    except KeyboardInterrupt:
        display.line(
            f"Interrupted. The verdicts so far are kept in {begun_beside(args.output)}; run the same command again to "
            "continue."
        )
        return 130
    write_answerable(args.output, questions, verdicts)
    begun_beside(args.output).unlink()
    tell_shares(parts, verdicts, display)
    display.line(str(args.output))
    return 0


def begun_beside(output: Path) -> Path:
    """Return the file that holds the verdicts until all are known."""
    return output.with_name(f"{output.name}.begun")


def try_all(
    questions: Sequence["Question"], find: "Search", args: argparse.Namespace, display: "Display"
) -> list[bool]:
    """Return a verdict on each question; those of an earlier run are not tried again."""
    from ..search.tool import SearchServerDown
    from ..tasks.qa.answerable import asked_again, begin, digest, enter, try_questions

    begun = begun_beside(args.output)
    settings = {"questions": digest(questions), "search": args.url or args.index, "top_k": args.top_k}
    verdicts = begin(begun, settings)
    if verdicts:
        display.line(f"{len(verdicts):,} questions have already been tried.")
    patient = asked_again(find, args.patience, display.line)
    try:
        with display.bar("searching", len(questions)) as update:
            update(len(verdicts))
            for more in try_questions(questions, patient, args.top_k, len(verdicts)):
                enter(begun, more)
                verdicts += more
                update(len(verdicts))
    except SearchServerDown as error:
        raise ValueError(
            f"{error}. The verdicts on {len(verdicts):,} of {len(questions):,} questions are kept in {begun}; run the "
            "same command again to continue."
        ) from error
    return verdicts


def tell_shares(parts: Mapping[str, Sequence["Question"]], verdicts: Sequence[bool], display: "Display") -> None:
    """Print how many questions of each split are answerable."""
    rest = iter(verdicts)
    for label, questions in parts.items():
        number = sum(islice(rest, len(questions)))
        share = number / len(questions)
        display.line(f"{label}: {number:,} of {len(questions):,} questions are answerable ({share:.1%})")
