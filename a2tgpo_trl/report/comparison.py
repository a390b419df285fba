"""learning curves of runs that differ by method and seed -> area under each, means, intervals, paired differences.

The area under a curve of a score over steps, divided by the steps: the mean score of the policy while it learnt. It
rewards learning sooner as well as learning more, and depends on no choice of a checkpoint.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from .seeds import Spread
from .series import STATE, Curve


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
    points = {entry["step"]: entry[key] for entry in history if entry.get(key) is not None}
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
