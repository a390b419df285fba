"""a study's file -> what it compares, and by which runs."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import RecipeError, shown
from ..lookup import nearest, read_yaml
from ..recipe.recipe_file import find_recipe


Settings = Mapping[str, Any]

CELL = re.compile(r"[A-Za-z0-9][\w.-]*")
# With streamed turns, tool latency decides which turns are read together, which moves gains by rounding.
EXACT = {"stream_turns": False}
RECORDED = 4  # batches recorded from one evaluation to the next
SET_BY_STUDY = (
    "base",
    "eval_on_start",
    "eval_steps",
    "eval_strategy",
    "files_in",
    "output_dir",
    "overwrite",
    "record_every",
    "record_tokens",
    "seed",
)


@dataclass(frozen=True)
class Run:
    """One training: a cell, a seed, and a learning rate if each cell is to find its own."""

    cell: str
    seed: int
    learning_rate: float | None = None

    @property
    def kind(self) -> tuple[str, float | None]:
        """The cell and the learning rate, which runs share if they differ only in their seed."""
        return self.cell, self.learning_rate

    @property
    def name(self) -> str:
        """The run's name, as a path. Example: a2tgpo/0.0005/3"""
        return f"{self.cell}/{'own' if self.learning_rate is None else f'{self.learning_rate:g}'}/{self.seed}"


@dataclass(frozen=True)
class Rates:
    """Learning rates that each cell tries on separate seeds, to use its best."""

    values: Sequence[float]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Study:
    """Cells that differ by some settings of one recipe, each trained with several seeds."""

    file: Path
    recipe: Path
    cells: Mapping[str, Settings]
    against: str | Mapping[str, str | Sequence[str]]  # the cell that others are compared with, or one or more for each
    seeds: Sequence[int]
    every: int = 10  # steps from one evaluation to the next
    reward: str = "exact_match"
    target: float = 0.7  # cells are timed until they reach this score
    learning_rates: Rates | None = None
    settings: Settings | None = None  # for all cells, over those of the recipe
    post_hoc: Sequence[str] = ()  # cells that were added when results of others had been seen

    @property
    def results(self) -> Path:
        return self.file.with_suffix(".parquet")

    @property
    def report(self) -> Path:
        return self.file.with_suffix(".md")

    @property
    def picture(self) -> Path:
        return self.file.with_suffix(".png")

    @property
    def figures(self) -> Path:
        return self.file.with_name(f"{self.file.stem}-figures.png")

    def baselines(self, cell: str) -> Sequence[str]:
        """Return the cells that a cell is compared with."""
        if isinstance(self.against, str):
            return [] if cell == self.against else [self.against]
        named = self.against.get(cell, [])
        return [named] if isinstance(named, str) else named

    def baseline(self, cell: str) -> str | None:
        """Return the first of these, which stands beside the cell in the main table."""
        return next(iter(self.baselines(cell)), None)

    def settings_of(self, run: Run) -> dict[str, Any]:
        """Return all settings of a run that go on top of the study's recipe."""
        rate = {} if run.learning_rate is None else {"learning_rate": run.learning_rate}
        recorded = {"record_every": max(1, self.every // RECORDED)}
        evaluated = {"eval_strategy": "steps", "eval_steps": self.every, **recorded}
        return {**EXACT, **evaluated, **(self.settings or {}), **rate, **self.cells[run.cell], "seed": run.seed}

    def kinds(self) -> list[Run]:
        """Return one run of each cell with each learning rate that it has in this study."""
        rates = [None] if self.learning_rates is None else self.learning_rates.values
        return [Run(cell, self.seeds[0], rate) for cell in self.cells for rate in rates]

    def first_of(self, cell: str) -> Run:
        rate = None if self.learning_rates is None else self.learning_rates.values[0]
        return Run(cell, self.seeds[0], rate)

    def tried(self) -> list[Run]:
        """Return the trial runs that determine the learning rate of each cell."""
        if self.learning_rates is None:
            return []
        rates = self.learning_rates
        return [Run(cell, seed, rate) for seed in rates.seeds for rate in rates.values for cell in self.cells]

    def reported(self, rates: Mapping[str, float | None]) -> Iterator[Run]:
        """Return the compared runs, seed by seed, so that cells can be compared before all runs are done."""
        return (Run(cell, seed, rates[cell]) for seed in self.seeds for cell in self.cells if cell in rates)


def read_study(file: Path) -> Study:
    """Read the study in a file; an error says which key is wrong."""
    return make_study(file, read_yaml(file))


def make_study(file: Path, content: Mapping[str, Any]) -> Study:
    """Make the study from the content that its file has or will have."""
    content = {**content}
    known = {field.name for field in fields(Study)} - {"file"}
    for key in content:
        if key not in known:
            raise RecipeError(f"{file}: there is no key {key!r}.{nearest(key, known)}")
    for key in ("recipe", "cells", "seeds"):
        if not content.get(key):
            raise RecipeError(f"{file}: the key {key!r} is missing.")
    _check_cells(file, content["cells"])
    settings = {} if content.get("settings") is None else content["settings"]
    if not isinstance(settings, dict):
        raise RecipeError(f"{file}: settings must be keys of a recipe ({{max_steps: 100}}); got {shown(settings)}.")
    _check_settings(file, "settings", settings)
    rates = _rates(file, content.pop("learning_rates", None), settings, content["cells"])
    study = Study(file, **{"against": next(iter(content["cells"])), **content}, learning_rates=rates)
    _check(study)
    return replace(study, recipe=_recipe(file, content["recipe"]))


def _recipe(file: Path, name: Any) -> Path:
    """The recipe beside the study, or one that comes with the package."""
    beside = file.parent / str(name)
    return beside if beside.is_file() else find_recipe(str(name))


def _check_cells(file: Path, cells: Any) -> None:
    if not isinstance(cells, dict):
        raise RecipeError(f"{file}: cells must map names to settings; got {shown(cells)}.")
    for name, cell in cells.items():
        if not isinstance(name, str) or not CELL.fullmatch(name):
            raise RecipeError(
                f"{file}: a cell's name must consist of letters, digits, '_', '-' and '.'; got {shown(name)}."
            )
        if not isinstance(cell, dict):
            raise RecipeError(
                f"{file}: cell {name!r} must hold settings, such as {{credit: grpo}}; got {shown(cell)}."
            )
        _check_settings(file, f"cell {name!r}", cell)


def _check_settings(file: Path, where: str, settings: Settings) -> None:
    for key in SET_BY_STUDY:
        if key in settings:
            raise RecipeError(
                f"{file}, {where}: the study itself sets {key}. Leave it out: `a2tgpo help studies` lists the keys."
            )


def _rates(file: Path, rates: Any, settings: Settings, cells: Mapping[str, Settings]) -> Rates | None:
    if rates is None:
        return None
    if not isinstance(rates, dict) or set(rates) != {"values", "seeds"} or not isinstance(rates["values"], list):
        raise RecipeError(f"{file}: learning_rates must have the form {{values: [1.0e-4, ...], seeds: [1000]}}.")
    for key in ("values", "seeds"):
        if not rates[key]:
            raise RecipeError(f"{file}: learning_rates, {key}: name at least one; got {shown(rates[key])}.")
    for where, said in (("settings", settings), *((f"cell {name!r}", cell) for name, cell in cells.items())):
        if "learning_rate" in said:
            raise RecipeError(
                f"{file}, {where}: learning_rate is given, but learning_rates tries out several. Leave one out."
            )
    try:
        values = [float(value) for value in rates["values"]]  # YAML reads 1e-4 as text
    except (TypeError, ValueError):
        raise RecipeError(
            f"{file}: the values of learning_rates must be numbers; got {shown(rates['values'])}."
        ) from None
    return Rates(values, rates["seeds"])


def _named_by(study: Study) -> list[Any]:
    """What `against` names."""
    if not isinstance(study.against, Mapping):
        return [study.against]
    named: list[Any] = [*study.against]
    for others in study.against.values():
        named += others if isinstance(others, list) else [others]
    return named


def _check_names(study: Study) -> None:
    named = _named_by(study)
    if not all(isinstance(cell, str) for cell in named):
        raise RecipeError(
            f"{study.file}: against must be a cell, or one or more for each of several ({{igpo: grpo, a2tgpo: [grpo, "
            f"igpo]}}); got {shown(study.against)}."
        )
    if not isinstance(study.post_hoc, (list, tuple)) or not all(isinstance(cell, str) for cell in study.post_hoc):
        raise RecipeError(f"{study.file}: post_hoc must be a list of cells; got {shown(study.post_hoc)}.")
    for cell in (*named, *study.post_hoc):
        if cell not in study.cells:
            raise RecipeError(
                f"{study.file}: against or post_hoc names a cell that does not exist.{nearest(cell, study.cells)}"
            )


def _check(study: Study) -> None:
    _check_names(study)
    if type(study.every) is not int or study.every < 1:
        raise RecipeError(f"{study.file}: every must be a number of steps; got {shown(study.every)}.")
    if type(study.target) not in (int, float) or not math.isfinite(study.target):
        raise RecipeError(f"{study.file}: target must be a score (0.7); got {shown(study.target)}.")
    if not isinstance(study.reward, str):
        raise RecipeError(f"{study.file}: reward must be the name of a reward; got {shown(study.reward)}.")
    tried = [] if study.learning_rates is None else study.learning_rates.seeds
    for numbers in (study.seeds, tried):
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise RecipeError(f"{study.file}: seeds must be a list of whole numbers; got {shown(numbers)}.")
        if len(set(numbers)) < len(numbers):
            raise RecipeError(f"{study.file}: name each seed only once; got {shown(numbers)}.")
    if set(tried) & set(study.seeds):
        raise RecipeError(f"{study.file}: learning rates must be chosen on other seeds than those that are reported.")
