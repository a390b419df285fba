"""folders of finished runs -> their learning curves in one picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..rewards import RIGHT_OR_WRONG


STATE = "trainer_state.json"
CURVE = "learning_curve.png"
SCORES = "evaluation"  # folder of a run's held-out scores
WINDOW = 5  # steps over which the training curve is averaged
SHARES = {f"rewards/{name}/mean": name.replace("_", " ") for name in RIGHT_OR_WRONG}
PANELS = (
    *SHARES.items(),
    ("reward", "reward"),
    ("turns/mean", "turns per rollout"),
    ("gain/mean", "gain per turn"),
)


def plot_runs(runs: Mapping[str, Path], file: Path, scored: str = "held out") -> None:
    """One panel per metric that any run logged: its course in training, and scores with their intervals.

    `scored`: what the questions of the scores are.
    """
    histories = {name: _history(folder) for name, folder in runs.items()}
    logged = {key for steps in histories.values() for step in steps for key in step}
    # The reward stands in where there is no share of right answers.
    without = {"reward"} if logged & SHARES.keys() else set()
    panels = [(key, title) for key, title in PANELS if key in logged - without]
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for colour, (name, folder) in enumerate(runs.items()):
            _draw(axes, histories[name], key, f"C{colour}", name)
            if key.startswith("rewards/"):
                _draw_held_out(
                    axes, folder, key.split("/")[1], histories[name][-1]["step"], f"C{colour}", f"{name}, {scored}"
                )
        if key in SHARES:
            axes.set_ylim(0, 1)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=110)


def _history(folder: Path) -> list[dict[str, Any]]:
    file = folder / STATE
    if not file.exists():
        raise ValueError(f"{folder} holds no finished run: there is no {STATE} in it.")
    steps = [step for step in json.loads(file.read_text())["log_history"] if "reward" in step]
    if not steps:
        raise ValueError(f"{file} holds no logged step.")
    return steps


def _draw(axes: Axes, history: Sequence[dict[str, Any]], key: str, colour: str, name: str) -> None:
    logged = [(step["step"], step[key]) for step in history if step.get(key) is not None]
    if not logged:
        return
    steps, values = zip(*logged, strict=True)
    smooth = [fmean(values[max(0, i - WINDOW) : i]) for i in range(1, len(values) + 1)]
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
    axes.plot(steps, smooth, color=colour, label=f"{name}, training")


def _draw_held_out(axes: Axes, folder: Path, reward: str, last: int, colour: str, label: str) -> None:
    points = []
    for step, when in ((0, "before"), (last, "after")):
        file = folder / SCORES / f"{when}.json"
        if file.exists():
            found = json.loads(file.read_text())["everything"].get(reward)
            points += [(step, found)] if found else []
    if points:
        means = [point["mean"] for _, point in points]
        errors = [[p["mean"] - p["low"] for _, p in points], [p["high"] - p["mean"] for _, p in points]]
        steps = [step for step, _ in points]
        axes.errorbar(steps, means, errors, fmt="o", color=colour, capsize=3, label=label, clip_on=False, zorder=3)
