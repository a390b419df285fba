"""sets of questions, an index or a server -> which of them its corpus can answer at all, as a file for task qa."""

import argparse
from collections import Counter
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sets", nargs="+", default=["multi-hop"], help="as those of task qa (default: multi-hop)")
    parser.add_argument("--train", nargs="+", default=[], metavar="SET", help="whose training questions are tried too")
    parser.add_argument("--folder", type=Path, help="folder with SET/SPLIT.jsonl (default: the hub)")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--url", help="address of a search server")
    place.add_argument("--index", help="folder of an index")
    parser.add_argument("--top-k", type=int, default=10, help="passages of a query (default: 10)")
    parser.add_argument("-o", "--output", type=Path, default=Path("answerable.jsonl"), help="default: %(default)s")
    parser.epilog = "A recipe takes the file: task_kwargs: {answerable: answerable.jsonl, answerable_only: true}"
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..report.progress import Display
    from ..search.tool import passages_of
    from ..tasks.qa.answerable import tried, write_answerable
    from ..tasks.qa.questions import load_split
    from ..tasks.qa.sets import SETS, named

    if args.top_k < 1:
        raise ValueError(f"--top-k must be at least 1; got {args.top_k}.")
    if not args.output.parent.is_dir():
        raise ValueError(f"--output: there is no folder {args.output.parent}.")
    splits = [(name, SETS[name].test) for name in named(args.sets)] + [(name, "train") for name in named(args.train)]
    find = passages_of(url=args.url, index=args.index, top_k=args.top_k)
    questions = [question for name, split in splits for question in load_split(name, split, args.folder)]
    display = Display()
    with display.bar("searching", len(questions)) as update:
        found = list(tried(questions, find, args.top_k, update))
    write_answerable(args.output, found)
    for set_name in dict.fromkeys(question.set for question in questions):
        count = Counter(answerable for question, answerable in found if question.set == set_name)
        share = count[True] / count.total()
        display.line(f"{set_name}: {count[True]:,} of {count.total():,} questions are answerable ({share:.1%})")
    display.line(str(args.output))
    return 0
