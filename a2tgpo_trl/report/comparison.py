"""learning curves of runs that differ by method and seed -> area under each, means, intervals, paired differences.

The area under a curve of a score over steps, divided by the steps: the mean score of the policy while it learnt. It
rewards learning sooner as well as learning more, and depends on no choice of a checkpoint.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.table import Table

from .plots import STATE


# 97.5 % quantiles of Student's t, for 1 to 30 degrees of freedom.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

Curve = Sequence[tuple[int, float]]  # (step, score), the steps ascending


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and the half-width of its 95 % confidence interval (Student's t); None of a single seed."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        number = len(values)
        if number < 2:
            return cls(values[0], None)
        quantile = T_QUANTILES[number - 2] if number - 2 < len(T_QUANTILES) else T_QUANTILES[-1]  # no less than it is
        return cls(fmean(values), quantile * stdev(values) / math.sqrt(number))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"


def area(curve: Curve) -> float:
    """Mean height of a curve, straight between its points.

    Example: (0, 0.2), (10, 0.4), (20, 0.8) -> (0.3 x 10 + 0.6 x 10) / 20 = 0.45
    """
    if len(curve) < 2:
        raise ValueError("a learning curve has two evaluations at least: set eval_steps below max_steps.")
    total = sum((b - a) * (x + y) / 2 for (a, x), (b, y) in zip(curve, curve[1:], strict=False))
    return total / (curve[-1][0] - curve[0][0])


def read_curve(folder: Path, reward: str) -> Curve:
    """Held-out scores of a finished run, by step."""
    key = f"eval_rewards/{reward}/mean"
    history = json.loads((folder / STATE).read_text())["log_history"]
    points = {entry["step"]: entry[key] for entry in history if key in entry}
    if not points:
        known = sorted({name for entry in history for name in entry if name.startswith("eval_rewards/")})
        raise ValueError(f"{folder / STATE} has no {key}. It has {', '.join(known) or 'no evaluations at all'}.")
    return sorted(points.items())


def compare(curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, dict[str, Spread]]:
    """By method: score at the start and at the end, area, and its difference from the first method, seed by seed."""
    first = next(iter(curves))
    results = {}
    for name, by_seed in curves.items():
        areas = {seed: area(curve) for seed, curve in by_seed.items()}
        results[name] = {
            "start": Spread.of([curve[0][1] for curve in by_seed.values()]),
            "end": Spread.of([curve[-1][1] for curve in by_seed.values()]),
            "area": Spread.of(list(areas.values())),
        }
        if name != first:
            differences = [areas[seed] - area(curves[first][seed]) for seed in by_seed]
            results[name][f"area, less that of {first}"] = Spread.of(differences)
    return results


def comparison_table(results: Mapping[str, Mapping[str, Spread]], title: str) -> Table:
    """A line for each method."""
    table = Table(title=title, title_justify="left", title_style="bold")
    columns = list(dict.fromkeys(column for row in results.values() for column in row))
    for column in ("method", *columns):
        table.add_column(column, justify="left" if column == "method" else "right", overflow="fold")
    for name, row in results.items():
        table.add_row(name, *(str(row.get(column, "")) for column in columns))
    return table
