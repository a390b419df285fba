"""folders of finished runs, or a study's results -> one picture: learning curves, gains by turn, or bars."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..report.series import Series

FILES = {"curves": "learning_curves.png", "turns": "turns.png", "bars": "bars.png"}  # by kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="output folder of a finished run, or a study's file.parquet"
    )
    parser.add_argument(
        "--kind",
        choices=FILES,
        default="curves",
        help="curves over steps; turns: means at each turn, early and late; bars: area under the curve, and its end; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--metric",
        nargs="+",
        metavar="NAME",
        help="what to draw, by logged name (`a2tgpo help metrics`), or held_out/exact_match; default: the usual",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help=f".png or .svg; default, by kind: {', '.join(FILES.values())}"
    )
    parser.set_defaults(run=run)
    parser.epilog = (
        "Runs that differ only in their seed are one line or bar, with the 95 percent interval of its mean "
        "over seeds (Student's t)."
    )


def run(args: argparse.Namespace) -> int:
    from ..report.looks import check_suffix
    from ..report.plots import plot_bars, plot_curves, plot_turns
    from ..report.series import read_series

    file = args.output or Path(FILES[args.kind])
    check_suffix(file)
    folders = [place for place in args.runs if place.suffix != ".parquet"]
    series = [one for place in args.runs if place.suffix == ".parquet" for one in _of_study(place)]
    series += read_series(folders) if folders else []
    plot = {"curves": plot_curves, "turns": plot_turns, "bars": plot_bars}[args.kind]
    for line in plot(series, file, args.metric):
        print(line, file=sys.stderr)
    print(file)
    return 0


def _of_study(file: Path) -> list["Series"]:
    from ..study.report import read_cells

    return read_cells(file)
