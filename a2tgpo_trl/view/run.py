"""a run's folder -> its records, log and held-out scores, and notes on what is missing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recording import SCHEMAS
from ..report.series import HELD_OUT, SCORES, STATE, evaluated, history_in
from ..resume.folders import checkpoints_of
from ..rollout.reading import OF_TRAINING, Record, files_like, plain, read_file
from ..rollout.records import json_number


OF_TRAINED = ("step", "round", "group", "rank", "advantages", "outcome")  # keys of a record of training

Score = tuple[int, float, float | None, float | None]  # step, mean, and the ends of its interval


@dataclass(frozen=True)
class Run:
    """What can be shown of a run. Records also have a `batch`: its number, in a step of several batches."""

    name: str
    records: Sequence[Record]
    log: Sequence[dict[str, Any]]
    scores: dict[str, list[Score]]  # of held-out questions, by reward
    notes: Sequence[str]  # what is missing


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in these folders, named after them."""
    return [_read_run(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]


def names_of(folders: Sequence[Path]) -> list[str]:
    """Example: outputs/one, outputs/two -> "one", "two" """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"A run is named twice: {', '.join(names)}.")
    return list(map(plain, names))


def _read_run(folder: Path, name: str) -> Run:
    files = files_like(folder, OF_TRAINING)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. Name the output_dir of a run.")
    if not files:
        if any((folder / trace).exists() for trace in (STATE, "whole_recipe.yaml")) or checkpoints_of(folder):
            raise ValueError(f"{folder} has no records of rollouts: train with --record_every N to have them.")
        raise ValueError(f"{folder} is not a run: there is neither {STATE} nor {' or '.join(OF_TRAINING)} in it.")
    records, notes = _records(files)
    log, of_log = read_log(folder)
    last = max([entry["step"] for entry in log] or [record["step"] for record in records])
    return Run(name, records, log, read_scores(folder, log, last), [*notes, *of_log])


# ---- records


def _records(files: Sequence[Path]) -> tuple[list[Record], list[str]]:
    found: list[Record] = []
    notes = []
    for file in files:
        records, is_whole = records_in(file)
        found += records
        if not is_whole:
            notes.append(f"{plain(file.name)}: its last line was cut off while it was written, and is left out.")
    if not found:
        raise ValueError(f"{files[0].parent} holds no whole record.")
    return found, notes


def records_in(file: Path) -> tuple[list[Record], bool]:
    """Return the records of a training file, and whether the file is complete."""
    records, is_whole = read_file(file)
    if any(record.get("schema") not in SCHEMAS or any(key not in record for key in OF_TRAINED) for record in records):
        raise ValueError(f"{file} is not a file of training rollouts of schema {' or '.join(map(str, SCHEMAS))}.")
    return records, is_whole


# ---- log and scores


def read_log(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the log entries, and notes about them."""
    file, notes = folder / STATE, []
    if not file.exists():
        saved = next((one for one in checkpoints_of(folder) if (one / STATE).exists()), None)
        if saved is None:
            return [], ["It has no log yet: only its records are shown."]
        file, notes = saved / STATE, [f"It is not finished: its log ends with {saved.name}."]
    return history_in(file), notes


def read_scores(folder: Path, log: Sequence[dict[str, Any]], last: int) -> dict[str, list[Score]]:
    """Return the scores before and after training with their intervals, and those of evaluations in between.

    A mean that is not a number, as when a reward was infinite once, is left out.
    """
    found: dict[str, list[Score]] = {}
    for step, name, value in evaluated(log):
        found.setdefault(plain(name.removeprefix(HELD_OUT)), []).append((step, value, None, None))
    for step, when in ((0, "before"), (last, "after")):
        file = folder / SCORES / f"{when}.json"
        if not file.exists():
            continue
        try:
            for reward, one in json.loads(file.read_text())["everything"].items():
                low, high = (one[end] if _is_known(one[end]) else None for end in ("low", "high"))
                if _is_known(one["mean"]):
                    found.setdefault(plain(reward), []).append((step, one["mean"], low, high))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} holds no scores: {error!r}.") from error
    return {reward: sorted(points, key=lambda point: point[0]) for reward, points in found.items()}


def _is_known(value: float | None) -> bool:
    return value is not None and json_number(value) is not None
