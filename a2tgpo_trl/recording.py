"""credited batches -> files of their rollouts in the run's folder, written beside the training and never in its way.

    outputs/run/rollouts/step-000011-rank-0.jsonl       a rollout a line, of the batch that step 11 trains on

A line is the record of a rollout (`rollout/records.py`), with what became of it:

    {"schema": 1, "step": 11, "rank": 0, "round": 1, "group": 3, ...,
     "outcome": 1.1, "outcome_advantage": 0.4, "advantages": [0.9, 0.4], "scores": [1.7, null], "clip_scale": [1.2, 1]}

`group` is the number of its prompt in the batch, `round` tells prompts that were rolled out again; `scores` are the
gains as they were compared. With `datasets` and with DuckDB:

    load_dataset("json", data_files="outputs/run/rollouts/*.jsonl")
    duckdb.sql("select step, avg(outcome) from 'outputs/run/rollouts/*.jsonl' group by step")

Values of environment variables whose names speak of a key, a token, a secret or a password are masked. A disk that is
full or slow, or the most that may be written (`record_megabytes`), ends the recording with a warning, not the run.
"""

import atexit
import json
import math
import os
import queue
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from accelerate.logging import get_logger
from torch import Tensor
from transformers import TrainerCallback

from .errors import RecipeError
from .resume.own_files import OwnFiles
from .rollout.records import Record


logger = get_logger(__name__)

FOLDER = "rollouts"
SCHEMA = 1
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 8  # characters: a shorter value may be any word
WAITING = 4  # batches that may wait to be written
PATIENCE = 60.0  # seconds that the end of a run waits for what is not yet written


class Recorder:
    """Writes every n-th batch of one rank. Nothing that goes wrong here reaches the training."""

    def __init__(self, folder: Path, rank: int, every: int, most_bytes: float):
        """
        Args:
            folder: of the run.
            rank: whose rollouts these are.
            every: steps from one batch that is written to the next; the first is the first of the run.
            most_bytes: that may be written.
        """
        self._own, self._rank, self._every, self._left = OwnFiles(folder), rank, every, most_bytes
        self._due = 0
        self._ended = False
        self._waiting: queue.Queue[tuple[str, list[dict[str, Any]]] | None] = queue.Queue(WAITING)
        self._writer: threading.Thread | None = None
        self._masked = masks(os.environ)

    def wants(self, step: int) -> bool:
        """Whether the batch that comes after so many steps is to be written."""
        return not self._ended and step >= self._due

    def put(self, step: int, round: int, records: Sequence[Record], group: Callable[[int], int]) -> None:
        """Hand over a batch that was made after so many steps. `group`: the number of a rollout's prompt in it."""
        first = {"schema": SCHEMA, "step": step + 1, "rank": self._rank, "round": round}
        lines = [{**first, "group": group(i), **record} for i, record in enumerate(records)]
        again = f"-round-{round}" if round > 1 else ""
        name = f"{FOLDER}/step-{step + 1:06}-rank-{self._rank}{again}.jsonl"
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="rollouts", daemon=True)
            self._writer.start()
            atexit.register(self.close)
        try:
            self._waiting.put_nowait((name, lines))
        except queue.Full:
            logger.warning(f"{name} is not written: the disk is slower than the training.")

    def end_batch(self, step: int) -> None:
        """All rounds of the batch that comes after so many steps are there."""
        if step >= self._due:
            self._due = (step // self._every + 1) * self._every

    def close(self) -> None:
        """Wait until what was handed over is written."""
        if self._writer is not None:
            self._waiting.put(None)
            self._writer.join(PATIENCE)
            self._writer = None
            atexit.unregister(self.close)

    # ---- on the thread that writes

    def _write(self) -> None:
        while (batch := self._waiting.get()) is not None:
            if self._ended:
                continue
            name, lines = batch
            try:
                self._write_file(name, lines)
            except (OSError, RecipeError) as error:
                self._end(f"{name} could not be written ({error})")

    def _write_file(self, name: str, lines: Sequence[dict[str, Any]]) -> None:
        text = "".join(self._masked(json.dumps(line, ensure_ascii=False, default=str)) + "\n" for line in lines)
        # A policy can write half a character, which no file holds as it is.
        content = text.encode("utf-8", errors="backslashreplace")
        if len(content) > self._left:
            self._end("As much is written as record_megabytes allows")
            return
        self._own.claim(name)
        file = self._own.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self._own.add(name)
        self._left -= len(content)

    def _end(self, why: str) -> None:
        self._ended = True
        logger.warning(f"{why}: no more rollouts are recorded. The run goes on.")


class Closing(TrainerCallback):
    """Closes a recorder when training ends."""

    def __init__(self, recorder: Recorder):
        self._recorder = recorder

    def on_train_end(self, args, state, control, **kwargs):
        self._recorder.close()


def credited(
    record: Record, outcome: float, outcome_advantage: float, of_turns: dict[str, Tensor], number: int
) -> Record:
    """A record, with what became of its rollout; of so many turns, the answer turn included.

    Example: of_turns {"advantages": [0.9, 0.4, 0.0], "scores": [1.7, nan, nan]} and 2 turns
             -> {..., "advantages": [0.9, 0.4], "scores": [1.7, None]}
    """
    turns = {name: [_number(value) for value in values[:number].tolist()] for name, values in of_turns.items()}
    found = {**record, "outcome": _number(outcome), "outcome_advantage": _number(outcome_advantage), **turns}
    return cast(Record, found)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def masks(environment: Any) -> Callable[[str], str]:
    """A function that puts the name of a secret in the place of its value, as text or as JSON has it.

    Example: API_KEY=abcdefgh12 -> "the key is abcdefgh12" becomes "the key is <API_KEY>"
    """
    values = {
        form: name
        for name, value in environment.items()
        if SECRET.search(name) and len(value) >= SHORTEST_SECRET
        for form in (value, json.dumps(value)[1:-1])
    }
    if not values:
        return lambda text: text
    pattern = re.compile("|".join(map(re.escape, sorted(values, key=len, reverse=True))))
    return lambda text: pattern.sub(lambda found: f"<{values[found[0]]}>", text)
