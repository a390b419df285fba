"""credited batches -> files of their rollouts in the run's folder, written beside the training and never in its way.

    outputs/run/rollouts/step-000011-rank-0.jsonl       a rollout a line, of what step 11 trains on

A line is the record of a rollout (`rollout/records.py`), with what became of it:

    {..., "outcome": 1.1, "outcome_advantage": 0.4, "advantages": [0.9, 0.4], "scores": [1.7, null],
     "clip_scale": [1.2, 1], "schema": 1, "step": 11, "rank": 0, "round": 1, "group": 3}

`group` is the number of its prompt in the batch, and `round` above 1 where that was rolled out again
(`resample_limit`). `outcome_advantage` is what the outcome adds to each turn, times `outcome_weight`; `scores` are the
gains as they were compared. With `datasets` and with DuckDB:

    load_dataset("json", data_files="outputs/run/rollouts/*.jsonl")
    duckdb.sql("select step, avg(outcome) from 'outputs/run/rollouts/*.jsonl' group by step")

Values of environment variables whose names speak of a key, a token, a secret or a password are masked. A disk that is
full or slow, or the most that may be written (`record_megabytes`), ends the recording with a warning, not the run.
"""

import atexit
import json
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import TrainerCallback

from .resume.own_files import OwnFiles
from .rollout.records import Record, json_number


logger = logging.getLogger(__name__)  # of each rank: a disk may be its own

FOLDER = "rollouts"
SCHEMA = 1
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 8  # characters: a shorter value may be any word
WAITING = 4  # batches that may wait to be written
PATIENCE = 60.0  # seconds that the end of a run waits for what is not yet written

Rounds = Sequence[tuple[int, Sequence[Record]]]  # number of the first of a rank's rollouts in a round; these


class Recorder:
    """Writes batches of one rank, so many steps apart. Nothing that goes wrong here reaches the training."""

    def __init__(self, folder: Path, rank: int, every: int, most_bytes: float):
        """
        Args:
            folder: of the run.
            rank: whose rollouts these are.
            every: steps from one batch that is written to the next; the first is the first of the run.
            most_bytes: that this rank may write, what lies there of an interrupted run included.
        """
        self._own, self._rank, self._every, self._most = OwnFiles(folder), rank, every, most_bytes
        self._due: int | None = None  # steps before the next batch that is written; None: not known yet
        self._step = -1  # steps before the last one that was written
        self._batches = 0  # of that step
        self._ended = False
        self._names: list[str] = []
        self._waiting: queue.Queue[tuple[str, Sequence[Record]] | None] = queue.Queue(WAITING)
        self._writer: threading.Thread | None = None
        self._masked = masks(os.environ)

    def wants(self, step: int) -> bool:
        """Whether a batch that is made after so many steps is to be written."""
        if self._due is None:  # the first batch, or the first since the run was resumed
            self._due = -(-step // self._every) * self._every
        return not self._ended and (step >= self._due or step == self._step)

    def put(self, step: int, records: Sequence[Record]) -> None:
        """Hand over what was made after so many steps to be trained on. A step may have several batches."""
        self._batches = self._batches + 1 if step == self._step else 1
        self._step, self._due = step, (step // self._every + 1) * self._every
        ours = {"schema": SCHEMA, "step": step + 1, "rank": self._rank}
        further = f"-batch-{self._batches}" if self._batches > 1 else ""
        name = f"{FOLDER}/step-{step + 1:06}-rank-{self._rank}{further}.jsonl"
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name=FOLDER, daemon=True)
            self._writer.start()
            atexit.register(self.close)
        try:
            self._waiting.put_nowait((name, [cast(Record, {**record, **ours}) for record in records]))
        except queue.Full:
            logger.warning(f"{name} is not written: the disk is slower than the training.")

    def close(self) -> None:
        """Wait until what was handed over is written, for a minute at most."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        atexit.unregister(self.close)
        try:
            self._waiting.put(None, timeout=PATIENCE)
            writer.join(PATIENCE)
        except queue.Full:
            pass
        if writer.is_alive():
            self._end(f"{self._own.folder / FOLDER} takes longer than {PATIENCE:.0f} s: the last rollouts are missing")

    # ---- on the thread that writes

    def _write(self) -> None:
        while (batch := self._waiting.get()) is not None:
            if not self._ended:
                name, records = batch
                try:
                    self._write_file(name, records)
                except Exception as error:  # whatever it is: training goes on
                    self._end(f"{name} could not be written ({type(error).__name__}: {error})")
        if self._names:
            self._own.add(*self._names)

    def _write_file(self, name: str, records: Sequence[Record]) -> None:
        lines = [json.dumps(self._masked(record), ensure_ascii=False, default=str) + "\n" for record in records]
        # A policy can write half a character, which no file holds as it is.
        content = "".join(lines).encode("utf-8", errors="backslashreplace")
        file = self._own.folder / name
        there = sum(other.stat().st_size for other in file.parent.glob(f"*-rank-{self._rank}*") if other != file)
        if there + len(content) > self._most:
            self._end("As much is written as record_megabytes allows")
            return
        self._own.claim(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.write_bytes(content)
        except OSError:
            file.unlink(missing_ok=True)  # a part of it would be read as all of it
            raise
        self._own.add(name)
        self._names.append(name)

    def _end(self, why: str) -> None:
        self._ended = True
        logger.warning(f"{why}: no more rollouts are recorded. The run goes on.")


class Closing(TrainerCallback):
    """Closes a recorder when training ends."""

    def __init__(self, recorder: Recorder):
        self._recorder = recorder

    def on_train_end(self, args, state, control, **kwargs):
        self._recorder.close()


# ---- what is written


def credited(
    record: Record, outcome: float, outcome_advantage: float, of_turns: dict[str, Tensor], number: int
) -> Record:
    """A record, with what became of its rollout; of so many turns, the answer turn included.

    Example: of_turns {"advantages": [0.9, 0.4, 0.0], "scores": [1.7, nan, nan]} and 2 turns
             -> {..., "advantages": [0.9, 0.4], "scores": [1.7, None]}
    """
    turns = {name: [json_number(value) for value in values[:number].tolist()] for name, values in of_turns.items()}
    found = {**record, "outcome": json_number(outcome), "outcome_advantage": json_number(outcome_advantage), **turns}
    return cast(Record, found)


def trained_on(rounds: Rounds, sources: Sequence[tuple[int, int]], group_size: int) -> list[Record]:
    """Of the rounds in which a batch was made, this rank's rollouts that are in it.

    Example: sources [(0, 0), (1, 0)], groups of two: the first group is that of the first round, and the second was
             rolled out again -> rollouts 0 and 1 of the first round, and 0 and 1 of the second
    """
    found = []
    for group, (number, place) in enumerate(sources):
        first, records = rounds[number]
        for i in range(place * group_size - first, (place + 1) * group_size - first):
            if 0 <= i < len(records):
                found.append(cast(Record, {**records[i], "round": number + 1, "group": group}))
    return found


def masks(environment: Mapping[str, str]) -> Callable[[Any], Any]:
    """A function that puts the name of a secret in the place of its value, in all texts of a record.

    Example: API_KEY=abcdefgh12 -> ["the key is abcdefgh12"] becomes ["the key is <API_KEY>"]
    """
    secrets = {
        value: name for name, value in environment.items() if SECRET.search(name) and len(value) >= SHORTEST_SECRET
    }
    if not secrets:
        return lambda value: value
    pattern = re.compile("|".join(map(re.escape, sorted(secrets, key=len, reverse=True))))

    def masked(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda found: f"<{secrets[found[0]]}>", value)
        if isinstance(value, dict):
            return {key: masked(inside) for key, inside in value.items()}
        return [masked(inside) for inside in value] if isinstance(value, (list, tuple)) else value

    return masked
