"""folders of runs -> one page for a browser: curves, turns, rollouts side by side."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a run with record_every")
    parser.add_argument("-o", "--output", type=Path, default=Path("view.html"), help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="also what is there and is no such page")
    parser.epilog = "What the page shows: a2tgpo help view"
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..view.html import is_ours, make_page
    from ..view.run import read_runs

    file: Path = args.output
    if file.is_dir():
        raise ValueError(f"{file} is a folder. Name a file: -o {file / 'view.html'}.")
    if file.exists() and not args.overwrite and not is_ours(file):
        raise ValueError(f"{file} is no page of ours. Name another file, or write over it (--overwrite).")
    runs = read_runs(args.runs)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.part")
    draft.write_text(make_page(runs), encoding="utf-8")
    draft.replace(file)  # a page that is there stays whole until the new one is
    for one in runs:
        for note in one.notes:
            print(f"{one.name}: {note}")
    print(f"{file}: {sum(len(one.records) for one in runs):,} rollouts, {file.stat().st_size / 2**20:.1f} MB")
    return 0
