"""a study's file -> its missing runs, and its report."""

import argparse
import math
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING

import yaml

from ..errors import RecipeError
from ..lookup import nearest
from .option_types import at_least
from .pipe import print_table


if TYPE_CHECKING:
    from ..recipe.recipe import Recipe
    from ..study.results import Kind, Results
    from ..study.study import Run, Study

RECIPE = "recipe.yaml"  # of a run, in its folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="file of the study (`a2tgpo help studies`)")
    parser.add_argument("--jobs", type=at_least(1), default=1, help="concurrent runs, one thread each; default: 1")
    parser.add_argument("--minutes", type=float, help="start no run after this many minutes; 0: only write the report")
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="run only these cells; default: all")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("outputs/study"),
        help="folder of unfinished runs; default: %(default)s",
    )
    parser.add_argument("--keep", action="store_true", help="keep the folders of finished runs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run a study. Return 0, or 1 if a run failed; its log says why."""
    from ..study.study import read_study

    study = read_study(args.study)
    for cell in args.cells or ():
        if cell not in study.cells:
            raise ValueError(f"--cells: {study.file} has no cell {cell!r}.{nearest(cell, study.cells)}")
    check(study)
    check_places(study)
    return conduct(study, args.output, cells=args.cells, jobs=args.jobs, minutes=args.minutes, keep=args.keep)


def conduct(
    study: "Study",
    output: Path,
    *,
    cells: Collection[str] | None = None,
    jobs: int = 1,
    minutes: float | None = None,
    keep: bool = False,
) -> int:
    """Make the missing runs, and the report of all that there are."""
    from ..study.comparison import best_rates
    from ..study.results import Results

    identities = {run.kind: _identity(study, run) for run in study.kinds()}
    results = Results(study.results, identities)
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    maker = Maker(study, results, identities, output, cells or study.cells, jobs, until, keep)
    with passing_on_sigterm():
        maker.make(study.tried())
        maker.make(study.reported(best_rates(study, results)))
    write_report(study, results)
    if maker.left:
        print(f"{maker.left} runs are still missing; run the same command again to make them.")
    return 1 if maker.failed else 0


def check(study: "Study") -> None:
    """Raise an error, before the first run, about what would fail in any of them."""
    from ..credit import preset_of
    from ..credit.credit_pass import have_turn_rewards
    from ..preflight.loading import environment_kinds
    from ..recipe.recipe import HELD_OUT
    from ..report.progress import quiet_libraries

    quiet_libraries()
    for cell in study.cells:
        recipe = _recipe_of(study, cell)
        if recipe.test_dataset is None:
            raise ValueError(
                f"{study.file}: {study.recipe} has no questions to compare on: name a dataset_test_split (train[:50])."
            )
        needs = preset_of(recipe.args.credit_method).needs_turn_rewards and not recipe.args.turn_rewards
        if needs and not have_turn_rewards(environment_kinds(recipe.task)):  # may make one of each environment
            raise ValueError(f"{study.file}: cell {cell!r} needs turn rewards, but has none (turn_rewards).")
        known = recipe.task.reward_names
        if study.reward not in known and recipe.task.environment_factory is None:
            raise ValueError(f"{study.file}: reward is {study.reward!r}, but the task has {', '.join(known)}.")
    if recipe.questions != HELD_OUT:  # alike for all cells
        print(f"{study.file}: the report says held-out, but the scores are on {recipe.questions}.", file=sys.stderr)


def _recipe_of(study: "Study", cell: str) -> "Recipe":
    """Read the recipe of a cell's runs. An error names the study and the cell: the recipe's file is then removed."""
    from ..recipe.recipe import read_recipe

    with TemporaryDirectory() as folder:
        file = write_recipe(study, study.first_of(cell), Path(folder))
        try:
            recipe = read_recipe(["--config", str(file)])
        except RecipeError as error:
            raise RecipeError(str(error).replace(str(file), f"{study.file}, cell {cell!r}")) from error
    try:
        _ = recipe.own_turn_rewards  # otherwise a run would be the first to look for them
    except (ValueError, ImportError) as error:
        raise RecipeError(f"{study.file}, cell {cell!r}, turn_rewards: {error}") from error
    return recipe


def check_places(study: "Study") -> None:
    """Refuse to overwrite files that are not this study's. Pictures are known by the report beside them."""
    from ..study.report import title
    from ..study.results import is_of_study

    over = "and would be overwritten. Move it elsewhere."
    if study.report.exists() and not study.report.read_text().startswith(title(study)):
        raise ValueError(f"{study.report} is not a report of this study, {over}")
    for picture in (study.picture, study.figures):
        if picture.exists() and not study.report.exists():
            raise ValueError(f"{picture} is not a picture of this study, {over}")
    if study.results.exists() and not is_of_study(study.results):
        raise ValueError(f"{study.results} holds no results of a study, {over}")


def _identity(study: "Study", run: "Run") -> str:
    from ..study.runs import identity

    with TemporaryDirectory() as folder:
        return identity([str(write_recipe(study, run, Path(folder)))], without=["seed"])


def write_recipe(study: "Study", run: "Run", folder: Path) -> Path:
    """Write the recipe of a run, which is built on the study's recipe, and return its path.

    Files that it names are looked up beside the study's file, before those beside the study's recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = {"output_dir": str((folder / "run").resolve())}
    places = {"base": str(study.recipe.resolve()), "files_in": str(study.file.resolve().parent)}
    content = {**places, **study.settings_of(run), **output}
    file = folder / RECIPE
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def write_report(study: "Study", results: "Results") -> None:
    from ..study.figures import draw_figures
    from ..study.report import draw, report, runs_by_cell, summary

    if len(results.table):
        study.report.write_text(report(study, results) + "\n")
        draw(study, results, study.picture)
        if runs := runs_by_cell(study, results):
            draw_figures(results, runs, study.reward, study.figures)
        print_table(summary(study, results))
        print(study.report)


@contextmanager
def passing_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM also ends the runs in progress, which would go on without this process."""
    from ..launch.launcher import pass_on_sigterm

    def leave(*_: object) -> None:
        pass_on_sigterm()
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class Maker:
    """Makes runs, several concurrently, and enters what they measured."""

    study: "Study"
    results: "Results"
    identities: Mapping["Kind", str]
    output: Path  # of the folders of runs
    cells: Collection[str]  # whose runs are made
    jobs: int  # concurrent runs
    until: float  # by the clock (time.monotonic): no run is started later
    keep: bool  # the folders of finished runs
    failed: list["Run"] = field(default_factory=list)
    left: int = 0  # runs that there was no time for
    entering: Lock = field(default_factory=Lock)

    def make(self, runs: Iterable["Run"]) -> None:
        missing = [run for run in runs if run.cell in self.cells and not self.results.has(run)]
        for run in missing:
            if self.results.take(run, self.identities[run.kind]):
                print(f"{run.name}: results taken from another study in the same folder", flush=True)
        with ThreadPoolExecutor(self.jobs) as jobs:
            list(jobs.map(self._make, [run for run in missing if not self.results.has(run)]))

    def _make(self, run: "Run") -> None:
        from ..study.results import measured
        from ..study.runs import LOG, train

        if time.monotonic() >= self.until:
            self.left += 1
            return
        folder = self.output / self.study.file.stem / run.name
        if folder.exists() and not (folder / RECIPE).is_file():
            raise ValueError(
                f"{folder} is not a run of a study, and would be removed. Name another folder (--output)."
            )
        recipe, start = write_recipe(self.study, run, folder), time.monotonic()
        # A study reads no tokens. Recording them is not measured, nor part of the recipe that identifies a run.
        code = train([str(recipe), "--overwrite", "true", "--record_tokens", "false"], folder, threads=1)
        try:
            measurements = measured(folder / "run", self.study.every, self.study.reward) if code == 0 else []
        except (ValueError, KeyError, OSError) as error:  # the results of the other runs are not lost
            code = 1
            with (folder / LOG).open("a") as log:
                log.write(f"The results of this run cannot be read: {type(error).__name__}: {error}\n")
        if code:
            self.failed.append(run)
            print(f"{run.name} failed, see {folder / LOG}", file=sys.stderr, flush=True)
            return
        with self.entering:
            self.results.put(run, self.identities[run.kind], measurements, self.jobs)
        print(f"{run.name}: {time.monotonic() - start:.0f} s", flush=True)
        if not self.keep:
            shutil.rmtree(folder)
