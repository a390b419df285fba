"""a finished run's folder -> its measurements; those of all runs, in one Parquet file.

A measurement is a number of a run at a step. Numbers that were logged or recorded in training cover the steps since
the previous measurement. Names of numbers on held-out questions begin with "held_out/".

    cell  learning_rate  seed  step  metric                        value  identity          made
    grpo  0.0005            3    20  held_out/exact_match          0.42   5f0c1ab2...       {"version": ...}
    grpo  0.0005            3    20  completions/mean_length       211.3  5f0c1ab2...       {"version": ...}

`identity` is a digest of the settings: a run is made again when they change. `made` says with what and where.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from filelock import FileLock

from .. import __version__
from ..report.provenance import commit, processor
from ..report.scores import TURNS
from ..report.series import HELD_OUT, SCORES, STATE, evaluated, is_number
from ..rollout.reading import OF_TRAINING, files_like
from ..rollout.record_files import read_records
from ..rollout.records import Record, read_jsonl
from .mechanism import mechanism, mechanism_of_training
from .study import Run


KEY = ["cell", "learning_rate", "seed"]
COLUMNS = [*KEY, "step", "metric", "value", "identity", "made"]
NO_MEASUREMENT = ("step", "epoch", "total_flos", "train_loss")
SPENT = ("rollouts/sampling_seconds", "rollouts/tool_seconds", "gain/seconds")  # 0 in a step that does not log it

Measurement = tuple[int, str, float]
Kind = tuple[str, float | None]  # a cell, and a learning rate that it is tried with


# ---- one run


def measured(folder: Path, every: int, reward: str | None = None) -> list[Measurement]:
    """Return the measurements of a finished run; it is an error if the first or last held-out `reward` is missing."""
    history = json.loads((folder / STATE).read_text())["log_history"]
    last = max(entry["step"] for entry in history)
    found = {(step, metric): value for step, metric, value in (*_logged(history, every), *evaluated(history))}
    for step, when in ((0, "before"), (last, "after")):
        found |= {(step, metric): value for metric, value in _scores(folder / SCORES / f"{when}.json")}
        rollouts = read_jsonl(folder / SCORES / f"{when}.jsonl")
        found |= {(step, HELD_OUT + metric): value for metric, value in mechanism(rollouts)}
    for end, records in _recorded(folder, every):
        found |= {(min(end, last), metric): value for metric, value in mechanism_of_training(records)}
    numbers = [(step, metric, value) for (step, metric), value in sorted(found.items()) if is_number(value)]
    scored = {step for step, metric, _ in numbers if metric == f"{HELD_OUT}{reward}"}
    if reward is not None and not {0, last} <= scored:
        raise ValueError(
            f"held-out {reward} is a number after steps {sorted(scored)}, but is needed at 0 and {last}. Does the "
            "reward return NaN or None for all questions?"
        )
    return numbers


def _recorded(folder: Path, every: int) -> Iterator[tuple[int, list[Record]]]:
    """Yield the recorded training rollouts, by the step of the evaluation after them."""
    stretches: dict[int, list[Record]] = {}
    for file in files_like(folder, OF_TRAINING):
        for record in read_records(file):
            stretches.setdefault(_evaluation_after(record["step"], every), []).append(record)
    yield from stretches.items()


def _evaluation_after(step: int, every: int) -> int:
    """Example: for steps 1 to 20, evaluated every 20 steps, it is the one at step 20"""
    return math.ceil(step / every) * every


def _logged(history: Sequence[dict], every: int) -> Iterator[Measurement]:
    """Yield means over each stretch of steps; steps that lack a metric do not count.

    Except for seconds: steps that train on an earlier batch spend none on a new one, and count as 0.
    """
    entries = [entry for entry in history if "loss" in entry]
    stretches: dict[int, list[dict]] = {}
    for entry in entries:
        stretches.setdefault(_evaluation_after(entry["step"], every), []).append(entry)
    for end, stretch in stretches.items():
        for metric in sorted({key for entry in stretch for key in entry} - set(NO_MEASUREMENT)):
            values = [entry[metric] for entry in stretch if is_number(entry.get(metric))]
            if not values:
                continue
            total = metric == "num_tokens"  # cumulative, so the last value counts
            steps = len(stretch) if metric in SPENT else len(values)
            yield min(end, entries[-1]["step"]), metric, values[-1] if total else sum(values) / steps


def _scores(file: Path) -> Iterator[tuple[str, float]]:
    """Yield means over all held-out questions and over those of each group: held_out/exact_match/hops 4"""
    scores = json.loads(file.read_text())
    for name, estimate in scores["everything"].items():
        yield HELD_OUT + name, estimate["mean"]
    for group, row in scores["groups"].items():
        for name, estimate in row.items():
            if name != TURNS:
                yield f"{HELD_OUT}{name}/{group}", estimate["mean"]


# ---- all runs


class Results:
    """The measurements of a study's runs, in a file that grows run by run. Several processes may add to it."""

    def __init__(self, file: Path, identities: Mapping[Kind, str] | None = None):
        """
        Args:
            identities: those of the runs as they would be made now. Runs with other settings stay in the file but are
                left out here. If None, all runs are read.
        """
        self.file, self._identities = file, identities
        self._show(self._read())

    def _read(self) -> pd.DataFrame:
        return pd.read_parquet(self.file) if self.file.exists() else pd.DataFrame(columns=COLUMNS)

    def _show(self, everything: pd.DataFrame) -> None:
        self.table, self.stale = self._current(everything)
        self._curves = _curves_of(self.table)
        self._ends: dict[Any, int] = {}
        for (*run, _), curve in self._curves.items():
            self._ends[*run] = max(self._ends.get((*run,), 0), curve[-1][0])

    def _current(self, everything: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """The measurements of runs with current settings, and the cells that also have others."""
        if self._identities is None:
            return everything, []
        rates = [None if math.isnan(rate) else rate for rate in everything["learning_rate"]]
        kinds = zip(everything["cell"], rates, strict=True)
        same = [self._identities.get(kind) == one for kind, one in zip(kinds, everything["identity"], strict=True)]
        current = pd.Series(same, index=everything.index, dtype=bool)
        return everything[current], sorted(everything["cell"][~current].unique())

    def has(self, run: Run) -> bool:
        return bool(_rows_of(self.table, run).any())

    def put(self, run: Run, identity: str, measurements: Iterable[Measurement], jobs: int = 1) -> None:
        """Replace the measurements of this run; `jobs`: how many runs were made in parallel."""
        self._enter(run, identity, measurements, json.dumps({**here(), "jobs": jobs}))

    def take(self, run: Run, identity: str) -> bool:
        """Enter a run of the same settings and seed from a study in the same folder; return whether there is one."""
        for file in sorted(self.file.parent.glob(f"*{self.file.suffix}")):
            if file == self.file or not is_of_study(file):
                continue
            same = pd.read_parquet(file, filters=[("identity", "==", identity), ("seed", "==", run.seed)])
            if len(same):
                one = same[same["cell"] == same["cell"].iloc[0]]  # several of its cells may have these settings
                measurements = zip(one["step"], one["metric"], one["value"], strict=True)
                self._enter(run, identity, measurements, one["made"].iloc[0])
                return True
        return False

    def _enter(self, run: Run, identity: str, measurements: Iterable[Measurement], made: str) -> None:
        rows = [
            (run.cell, run.learning_rate, run.seed, step, metric, value, identity, made)
            for step, metric, value in measurements
        ]
        new = pd.DataFrame(rows, columns=COLUMNS).astype({"learning_rate": "float64"})
        with FileLock(f"{self.file}.lock"):
            everything = self._read()
            kept = everything[~_rows_of(everything, run)]
            table = pd.concat([kept, new]) if len(kept) else new
            table = table.sort_values([*KEY, "step", "metric"], ignore_index=True)
            draft = self.file.with_suffix(".draft")
            table.to_parquet(draft, index=False, compression="zstd")
            draft.replace(self.file)
        self._show(table)

    def curve(self, run: Run, metric: str) -> list[tuple[int, float]]:
        """Return a run's measurements of one metric, by step; empty if there are none."""
        return self._curves.get((*run.kind, run.seed, metric), [])

    def end(self, run: Run) -> int:
        """Return the last step of a run."""
        return self._ends[*run.kind, run.seed]

    def curves(self, run: Run) -> dict[str, list[tuple[int, float]]]:
        """Return all measurements of a run, by metric."""
        return {metric: curve for (*of, metric), curve in self._curves.items() if tuple(of) == (*run.kind, run.seed)}

    def identities_of(self, run: Run) -> set[str]:
        """Return the identities of the settings that a run was made with."""
        return set(self.table["identity"][_rows_of(self.table, run)])


def is_of_study(file: Path) -> bool:
    """Whether a file holds results of a study, judged by its columns."""
    try:
        return {*COLUMNS} <= {*pq.read_schema(file).names}
    except (ValueError, OSError):  # some other file, or an incomplete one
        return False


def _curves_of(table: pd.DataFrame) -> dict[tuple[str, float | None, int, str], list[tuple[int, float]]]:
    """The measurements by cell, learning rate, seed and metric; rows are sorted by step."""
    curves: dict[tuple[str, float | None, int, str], list[tuple[int, float]]] = {}
    columns = (table[name].tolist() for name in (*KEY, "metric", "step", "value"))
    for cell, rate, seed, metric, step, value in zip(*columns, strict=True):
        key = (cell, None if math.isnan(rate) else rate, seed, metric)
        curves.setdefault(key, []).append((step, value))
    return curves


def _rows_of(table: pd.DataFrame, run: Run) -> "pd.Series[bool]":
    rate = run.learning_rate
    same_rate = table["learning_rate"].isna() if rate is None else table["learning_rate"] == rate
    return (table["cell"] == run.cell) & (table["seed"] == run.seed) & same_rate


def here() -> dict[str, str]:
    """Return the versions, the machine and the date that a run is made with."""
    import torch
    import trl

    return {
        "version": __version__,
        "commit": (commit(Path(__file__).parent)["git_commit"] or "none")[:7],
        "torch": torch.__version__,
        "trl": trl.__version__,
        "machine": processor(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "date": date.today().isoformat(),
    }
