"""records of rollouts -> means over questions with confidence intervals -> a table."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from rich.table import Table

from ..rewards import RIGHT_OR_WRONG


CONFIDENCE = 0.95
RESAMPLES = 2000
TURNS = "tool turns"


@dataclass(frozen=True)
class Estimate:
    """A mean over questions, and where the mean over all such questions lies with 95 % confidence."""

    mean: float
    low: float
    high: float
    number: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def interval(values: Sequence[float], share: bool, confidence: float = CONFIDENCE) -> Estimate:
    """Mean and confidence interval of one number per question.

    A share (of questions, or of each one's rollouts) has Wilson's interval, which stays honest at 0 % and 100 %. Other
    numbers have the percentiles of means over questions that are drawn again with replacement (bootstrap).

    Example: 8 of 10 right -> 0.8 (0.490 to 0.943)
    """
    number, mean = len(values), sum(values) / len(values)
    if share:
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        centre = (mean + z * z / (2 * number)) / (1 + z * z / number)
        half = z / (1 + z * z / number) * math.sqrt(mean * (1 - mean) / number + z * z / (4 * number * number))
        return Estimate(mean, max(centre - half, 0.0), min(centre + half, 1.0), number)
    draws = np.random.default_rng(0).integers(0, number, (RESAMPLES, number))
    low, high = np.quantile(np.asarray(values)[draws].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(mean, float(low), float(high), number)


def score(records: Iterable[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Each reward and the tool turns: means over questions, with intervals.

    Several rollouts of one question are averaged first, since they are no independent samples.
    """
    by_row: dict[Any, list[dict[str, float]]] = {}
    for record in records:
        numbers = {name: value for name, value in record["rewards"].items() if value is not None}
        by_row.setdefault(record["row"], []).append({**numbers, TURNS: float(record["tool_turns"])})
    names = dict.fromkeys(name for rollouts in by_row.values() for rollout in rollouts for name in rollout)
    scores = {}
    for name in names:
        given = [[rollout[name] for rollout in rollouts if name in rollout] for rollouts in by_row.values()]
        scores[name] = interval(
            [sum(values) / len(values) for values in given if values], share=name in RIGHT_OR_WRONG
        )
    return scores


@dataclass(frozen=True)
class Scores:
    """Scores of an evaluation: over all rows, and for each value of a column."""

    everything: dict[str, Estimate]
    groups: dict[str, dict[str, Estimate]]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], group_by: str | None) -> "Scores":
        groups: dict[str, dict[str, Estimate]] = {}
        if group_by is not None:
            for value in sorted({record[group_by] for record in records}):
                groups[f"{group_by} {value}"] = score(record for record in records if record[group_by] == value)
        return cls(score(records), groups)

    @property
    def number(self) -> int:
        """How many questions were asked."""
        return self.everything[TURNS].number

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), indent=2) + "\n")


def score_table(columns: dict[str, Scores], title: str) -> Table:
    """Scores side by side: a line for each reward, and below the first one a line for each group."""
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("mean (95 % interval)")
    for name in columns:
        table.add_column(name, justify="right")
    first = next(iter(columns.values()))
    for i, line in enumerate(first.everything):
        cells = [scores.everything.get(line, "") for scores in columns.values()]
        table.add_row(line.replace("_", " "), *map(str, cells), style="bold" if i == 0 else None)
        for group in first.groups if i == 0 else ():
            cells = [scores.groups.get(group, {}).get(line, "") for scores in columns.values()]
            table.add_row(f"  {group}", *map(str, cells))
    return table
