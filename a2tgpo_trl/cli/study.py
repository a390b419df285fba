"""a study's file -> its runs that are not there yet, and its report."""

import argparse
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING

import yaml


if TYPE_CHECKING:
    from ..study.results import Results
    from ..study.study import Run, Study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="file of the study (`a2tgpo help studies`)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, of one thread each; default: 1")
    parser.add_argument("--minutes", type=float, help="begin no run after this time; 0: only write the report")
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="make runs of these alone; default: all")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("outputs/study"),
        help="of unfinished runs; default: %(default)s",
    )
    parser.add_argument("--keep", action="store_true", help="keep the folders of finished runs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: all that was to be run is there; 1: a run failed, and its log says why."""
    from ..study.comparison import best_rates
    from ..study.results import Results
    from ..study.study import read_study

    study = read_study(args.study)
    results = Results(study.results)
    check(study, results)
    maker = Maker(study, results, args)
    maker.make(study.tried())
    maker.make(study.reported(best_rates(study, results)))
    write_report(study, results)
    return 1 if maker.failed else 0


def check(study: "Study", results: "Results") -> None:
    """What would fail in one of the runs is said before the first."""
    from ..recipe.recipe import read_recipe
    from ..report.progress import quiet_libraries

    quiet_libraries()
    for cell in study.cells:
        with TemporaryDirectory() as folder:
            run = study.first_of(cell)
            recipe = read_recipe(["--config", str(write_recipe(study, run, Path(folder)))])
        if recipe.test_dataset is None:
            raise ValueError(f"{study.file}: {study.recipe} has no questions to compare on (dataset_test_split).")
        known = [getattr(reward, "__name__", str(reward)) for reward in recipe.task.reward_funcs]
        if study.reward not in known and recipe.task.environment_factory is None:
            raise ValueError(f"{study.file}: reward is {study.reward!r}, but the task has {', '.join(known)}.")
    written = [file for file in (study.report, study.picture) if file.exists()]
    if written and not len(results.table):
        raise ValueError(f"{written[0]} is no report of this study: there are no results. Move it away.")


def write_recipe(study: "Study", run: "Run", folder: Path) -> Path:
    """A recipe on the study's, which says what the run is."""
    folder.mkdir(parents=True, exist_ok=True)
    output = {"output_dir": str((folder / "run").resolve())}
    content = {"base": str(study.recipe.resolve()), **study.settings_of(run), **output}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def write_report(study: "Study", results: "Results") -> None:
    from ..study.report import draw, report

    if len(results.table):
        study.report.write_text(report(study, results) + "\n")
        draw(study, results, study.picture)
        print(study.report)


class Maker:
    """Makes runs, several at once, and enters what they measured."""

    def __init__(self, study: "Study", results: "Results", args: argparse.Namespace):
        self.study, self.results, self.args = study, results, args
        self.until = float("inf") if args.minutes is None else time.monotonic() + 60 * args.minutes
        self.failed: list[Run] = []
        self._entering = Lock()

    def make(self, runs: Iterable["Run"]) -> None:
        wanted = [run for run in runs if not self.args.cells or run.cell in self.args.cells]
        with ThreadPoolExecutor(self.args.jobs) as jobs:
            list(jobs.map(self._make, wanted))

    def _make(self, run: "Run") -> None:
        from ..study.results import measured
        from ..study.runs import LOG, identity, train

        folder = self.args.output / self.study.file.stem / run.name
        recipe = write_recipe(self.study, run, folder)
        with self._entering:  # it reads the recipe by parsers that threads do not share
            same = identity([str(recipe)])
        if self.results.has(run, same) or time.monotonic() >= self.until:
            return
        start = time.monotonic()
        if train([str(recipe), "--overwrite", "true"], folder, threads=1):
            self.failed.append(run)
            print(f"{run.name} failed: {folder / LOG}", file=sys.stderr, flush=True)
            return
        measurements = measured(folder / "run", self.study.every)
        with self._entering:
            self.results.put(run, same, measurements)
        print(f"{run.name}: {time.monotonic() - start:.0f} s", flush=True)
        if not self.args.keep:
            shutil.rmtree(folder)
