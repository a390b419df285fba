"""folders of finished runs -> series: runs that differ only in their seed are one, with a number for each seed.

    outputs/grpo-0, outputs/grpo-1, outputs/gtpo  ->  grpo (2 runs), gtpo (1)

A run's settings are read from its folder (`whole_recipe.yaml`). A run whose folder lacks this file, such as that of a
script, is a separate series. If two runs of the same settings have the same seed, so is each run of these settings.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from ..lookup import read_yaml
from .scores import Estimate
from .seeds import over_seeds


STATE = "trainer_state.json"
SCORES = "evaluation"  # folder of a run's held-out scores
WHOLE = "whole_recipe.yaml"
HELD_OUT = "held_out/"  # prefix of a held-out score
EVALUATED = "eval_rewards/"  # its prefix in a log
NO_SETTINGS = ("seed", "output_dir", "run_name")  # settings in which runs of a series may differ
SEED = 42  # the seed of a recipe that names none, as in the parent class
WINDOW = 5  # steps over which a training curve is averaged

Curve = Sequence[tuple[int, float]]  # (step, score), the steps ascending


def area(curve: Curve) -> float:
    """Return the mean height of a curve, straight between its points: the mean score of the policy while it learnt.

    It rewards learning sooner as well as learning more, and does not depend on the choice of a checkpoint.

    Example: (0, 0.2), (10, 0.4), (20, 0.8) -> (0.3 x 10 + 0.6 x 10) / 20 = 0.45
    """
    if len(curve) < 2:
        raise ValueError("a learning curve needs at least two evaluations: set eval_steps below max_steps.")
    total = sum((b - a) * (x + y) / 2 for (a, x), (b, y) in zip(curve, curve[1:], strict=False))
    return total / (curve[-1][0] - curve[0][0])


@dataclass(frozen=True)
class Run:
    """What was measured in a run: a curve for each metric. Names of held-out scores begin with `held_out/`."""

    curves: Mapping[str, Curve]
    scores: Mapping[str, Mapping[int, Estimate]] = field(default_factory=dict)  # with intervals over questions


@dataclass(frozen=True)
class Series:
    """The runs of one method or setting, which differ only in their seed."""

    name: str
    runs: Sequence[Run]
    window: int = WINDOW  # 1 if its training curves are already means

    @property
    def is_alone(self) -> bool:
        return len(self.runs) == 1

    @property
    def label(self) -> str:
        """Example: grpo (8 seeds); for a run alone, its name"""
        return self.name if self.is_alone else f"{self.name} ({len(self.runs)} seeds)"

    @property
    def metrics(self) -> set[str]:
        """The metrics that each of its runs has."""
        return set.intersection(*({metric for metric, curve in run.curves.items() if curve} for run in self.runs))

    @property
    def partial(self) -> set[str]:
        """The metrics that some of its runs have, but not all, or not at any common step."""
        some = {metric for run in self.runs for metric in run.curves}
        return {metric for metric in some if not self.has(metric)}

    def has(self, metric: str) -> bool:
        """Whether all of its runs have the metric at some common step."""
        steps = [{step for step, _ in run.curves.get(metric, ())} for run in self.runs]
        return bool(set.intersection(*steps))

    def curve(self, metric: str) -> list[tuple[int, Estimate]]:
        """Means over seeds at the steps that all runs have; training curves are smoothed first."""
        window = 1 if metric.startswith(HELD_OUT) else self.window
        return mean_curve([smooth(run.curves[metric], window) for run in self.runs])


def mean_curve(curves: Sequence[Curve]) -> list[tuple[int, Estimate]]:
    """Return means over seeds at the steps that all curves have.

    Example: (0, 0.2), (10, 0.4) and (0, 0.4) -> at step 0, a mean of 0.3
    """
    by_step = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    return [(step, over_seeds([curve[step] for curve in by_step])) for step in steps]


def smooth(curve: Curve, window: int) -> Curve:
    """Average each value with those before it, `window` in all.

    Example (window 2): (1, 0.0), (2, 1.0), (3, 2.0) -> (1, 0.0), (2, 0.5), (3, 1.5)
    """
    values = [value for _, value in curve]
    parts = [values[max(0, i - window) : i] for i in range(1, len(values) + 1)]
    return [(step, math.fsum(part) / len(part)) for (step, _), part in zip(curve, parts, strict=True)]


# ---- a run's folder


def read_run(folder: Path) -> Run:
    """Return what a finished run logged, and its held-out scores.

    Scores before and after training, which have intervals, replace those that were logged at these steps.
    """
    history = read_history(folder)
    steps = [entry for entry in history if "reward" in entry]
    if not steps:
        raise ValueError(f"{folder / STATE} holds no logged step: train with --logging_steps 1.")
    found: dict[str, dict[int, float]] = {}
    for step, metric, value in (*_logged(steps), *evaluated(history)):
        found.setdefault(metric, {})[step] = value
    scores = _scores(folder, steps[-1]["step"])
    for metric, by_step in scores.items():
        found.setdefault(metric, {}).update({step: score.mean for step, score in by_step.items()})
    return Run({metric: sorted(by_step.items()) for metric, by_step in found.items()}, scores)


def read_history(folder: Path) -> list[dict[str, Any]]:
    file = folder / STATE
    if not file.exists():
        raise ValueError(f"{folder} holds no finished run: there is no {STATE} in it. {_instead(folder)}")
    return history_in(file)


def history_in(file: Path) -> list[dict[str, Any]]:
    """Return the log in a trainer state of a run or a checkpoint, sorted by step."""
    try:
        history = json.loads(file.read_text())["log_history"]
        return sorted(history, key=lambda entry: entry["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not the log of a run: {error!r}.") from error


def _instead(folder: Path) -> str:
    """Advice on what to name instead of a folder that holds no finished run."""
    if not folder.is_dir():
        return "There is no such folder."
    inside = sorted(file.parent for file in folder.glob(f"*/{STATE}"))
    saved = [one for one in inside if one.name.startswith("checkpoint-")]
    if saved:
        last = max(saved, key=lambda one: (len(one.name), one.name))
        return f"Resume the run (--resume_from_checkpoint true), or name its last checkpoint: {last}"
    if inside:
        return f"It contains runs: name them ({inside[0]} ...)."
    return "Name the output_dir of a run that finished."


def _logged(steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str, float]]:
    for entry in steps:
        for metric, value in entry.items():
            if metric not in ("step", "epoch") and is_number(value):
                yield entry["step"], metric, value


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a log is a finite number; it is None, for example, if a reward scored no rollout."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def evaluated(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str, float]]:
    """Yield step, name and mean of each held-out score that was logged during training."""
    for entry in history:
        for key, value in entry.items():
            if key.startswith(EVALUATED) and key.endswith("/mean") and is_number(value):
                yield entry["step"], HELD_OUT + key.removeprefix(EVALUATED).removesuffix("/mean"), value


def _scores(folder: Path, last: int) -> dict[str, dict[int, Estimate]]:
    """The held-out scores before and after training, by metric and step."""
    found: dict[str, dict[int, Estimate]] = {}
    for step, when in ((0, "before"), (last, "after")):
        file = folder / SCORES / f"{when}.json"
        if not file.exists():
            continue
        try:
            for name, score in json.loads(file.read_text())["everything"].items():
                found.setdefault(HELD_OUT + name, {})[step] = Estimate(**score)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} holds no scores: {error!r}.") from error
    return found


# ---- runs together


def read_series(folders: Sequence[Path]) -> list[Series]:
    """Return the series of these runs, in their order; several runs are named by what their folder names share."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"A run is named twice: {', '.join(names)}.")
    found = [
        (common_name([names[i] for i in places]), [read_run(folders[i]) for i in places], names[places[0]])
        for places in _alike([_settings(folder) for folder in folders])
    ]
    labels = [label for label, _, _ in found]
    return [Series(label if labels.count(label) == 1 else first, runs) for label, runs, first in found]


def _settings(folder: Path) -> tuple[str, int] | None:
    """A run's recipe without its seed, and its seed; None if the recipe is unknown."""
    file = folder / WHOLE
    if not file.exists():
        return None
    recipe = read_yaml(file)
    said = {key: value for key, value in recipe.items() if key not in NO_SETTINGS}
    return json.dumps(said, sort_keys=True, default=str), recipe.get("seed", SEED)


def _alike(settings: Sequence[tuple[str, int] | None]) -> list[list[int]]:
    """The positions of the runs of each series."""
    groups: dict[Any, list[int]] = {}
    for i, of_run in enumerate(settings):
        groups.setdefault(i if of_run is None else of_run[0], []).append(i)
    found = []
    for places in groups.values():
        seeds = {of_run[1] for i in places if (of_run := settings[i]) is not None}
        found += [places] if len(seeds) in (0, len(places)) else [[i] for i in places]
    return sorted(found)


def common_name(names: Sequence[str]) -> str:
    """Return the common beginning of names, without the seed that follows.

    Example: grpo-0 and grpo-1 -> grpo; run-10 and run-12 -> run; igpo_seed3 and igpo_seed4 -> igpo
    """
    if len(names) == 1:
        return names[0]
    begins = os.path.commonprefix(list(names))
    if any(name[len(begins) :][:1].isdigit() for name in names):
        begins = re.sub(r"\d+$", "", begins)  # drop digits that begin longer numbers
    begins = re.sub(r"([-_./ ]+seed)?[-_./ ]*$", "", begins)
    return begins or names[0]
