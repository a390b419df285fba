"""a study's file -> what is compared in it, by which runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import RecipeError, shown
from ..lookup import nearest, read_yaml


Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One training: a cell, with a learning rate if the cell is to find its own, and a seed."""

    cell: str
    seed: int
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        rate = "" if self.learning_rate is None else f"-{self.learning_rate:g}"
        return f"{self.cell}{rate}-{self.seed}"


@dataclass(frozen=True)
class Rates:
    """Learning rates that each cell tries, on seeds of their own, to go on with its best."""

    values: Sequence[float]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Study:
    """Cells that differ by some settings of one recipe, each trained with several seeds."""

    file: Path
    recipe: Path
    cells: Mapping[str, Settings]
    against: str  # the cell that the others are compared with
    seeds: Sequence[int]
    every: int = 10  # steps from one evaluation to the next
    reward: str = "exact_match"
    target: float = 0.7  # the score that cells are timed to
    learning_rates: Rates | None = None
    settings: Settings | None = None  # of all cells, over those of the recipe

    @property
    def results(self) -> Path:
        return self.file.with_suffix(".parquet")

    @property
    def report(self) -> Path:
        return self.file.with_suffix(".md")

    @property
    def picture(self) -> Path:
        return self.file.with_suffix(".png")

    def settings_of(self, run: Run) -> dict[str, Any]:
        """All that a run's recipe says over the study's."""
        rate = {} if run.learning_rate is None else {"learning_rate": run.learning_rate}
        evaluated = {"eval_strategy": "steps", "eval_steps": self.every, "record_every": self.every}
        return {**evaluated, **(self.settings or {}), **rate, **self.cells[run.cell], "seed": run.seed}

    def first_of(self, cell: str) -> Run:
        rate = None if self.learning_rates is None else self.learning_rates.values[0]
        return Run(cell, self.seeds[0], rate)

    def tried(self) -> list[Run]:
        """The runs that find out the learning rate of each cell."""
        if self.learning_rates is None:
            return []
        rates = self.learning_rates
        return [Run(cell, seed, rate) for seed in rates.seeds for rate in rates.values for cell in self.cells]

    def reported(self, rates: Mapping[str, float | None]) -> Iterator[Run]:
        """The runs that are compared: seed by seed, so that cells can be compared before all are there."""
        return (Run(cell, seed, rates[cell]) for seed in self.seeds for cell in self.cells if cell in rates)


def read_study(file: Path) -> Study:
    """The study in a file; an error says which key is wrong."""
    content = read_yaml(file)
    known = {field.name for field in fields(Study)} - {"file"}
    for key in content:
        if key not in known:
            raise RecipeError(f"{file}: there is no key {key!r}.{nearest(key, known)}")
    for key in ("recipe", "cells", "seeds"):
        if not content.get(key):
            raise RecipeError(f"{file}: the key {key!r} is missing.")
    rates = content.pop("learning_rates", None)
    if rates is not None and (not isinstance(rates, dict) or set(rates) != {"values", "seeds"}):
        raise RecipeError(f"{file}: learning_rates must say {{values: [1.0e-4, ...], seeds: [1000]}}.")
    content = {"against": next(iter(content["cells"])), **content}
    study = Study(file, **content, learning_rates=None if rates is None else Rates(**rates))
    _check(study)
    return replace(study, recipe=file.parent / study.recipe)


def _check(study: Study) -> None:
    for name, cell in study.cells.items():
        if not isinstance(cell, dict):
            raise RecipeError(f"{study.file}: cell {name!r} must be settings ({{credit: grpo}}); got {shown(cell)}.")
    if study.against not in study.cells:
        raise RecipeError(f"{study.file}: against names no cell.{nearest(study.against, study.cells)}")
    rates = study.learning_rates
    tried = [] if rates is None else rates.seeds
    for numbers in (study.seeds, tried):
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise RecipeError(f"{study.file}: seeds must be a list of whole numbers; got {shown(numbers)}.")
    if set(tried) & set(study.seeds):
        raise RecipeError(f"{study.file}: learning rates are chosen on other seeds than those that are reported.")
