"""batches that are trained on -> files of their records, written by a separate thread."""

import atexit
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback

from ..resume.own_files import OwnFiles
from ..rollout.record_files import FORMATS, encoded
from ..rollout.records import Record
from .schedule import Schedule
from .secrets import Masks
from .updates import TrainedBatch, Update


logger = logging.getLogger(__name__)  # on every rank: each may have its own disk

FOLDER = "rollouts"
NAME = re.compile(r"step-(?P<step>\d+)-rank-(?P<rank>\d+)(-batch-\d+)?\.\w+")  # of a file
SCHEMA = 2
SCHEMAS = (1, SCHEMA)  # the versions that can be read
WAITING = 4  # batches that may wait to be written
PATIENCE = 60.0  # seconds that the end of a run waits for batches not yet written


class Recorder:
    """Writes the batches of one rank that its schedule names. Errors here do not reach the training."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        schedule: Schedule,
        most_bytes: float,
        format: str = "jsonl",
        texts: Callable[[Sequence[int]], list[str]] | None = None,
    ):
        """
        Args:
            folder: the run's folder.
            rank: the rank whose rollouts these are.
            schedule: which batches are written.
            most_bytes: the most that this rank may write, including files left by an interrupted run.
            format: the format of the files.
            texts: returns the texts of tokens, if records have `prompt_ids` and `tokens`.
        """
        self._own, self._rank, self._schedule, self._most = OwnFiles(folder), rank, schedule, most_bytes
        self._format, self._texts = format, texts
        self._step = -1  # steps taken before the last batch that was put
        self._batches = 0  # of that step
        self._ended = False
        self._names: list[str] = []
        self._trained: tuple[str, TrainedBatch] | None = None  # the batch that is being trained on, and its file
        self._waiting: queue.Queue[tuple[str, TrainedBatch] | None] = queue.Queue(WAITING)
        self._writer: threading.Thread | None = None
        self._masked = Masks(os.environ)

    def is_due(self, step: int) -> bool:
        """Whether a batch made after `step` steps is to be written; the same on all ranks."""
        return self._schedule.is_due(step)

    def wants(self, step: int) -> bool:
        """Whether it is due and this rank still records."""
        return self.is_due(step) and not self._ended

    def begin(self, step: int, ranks: int) -> None:
        """Begin or resume a run after `step` steps, on so many ranks.

        A resumed run removes its records of later steps, which are taken again. Of these files each rank removes its
        own, and a share of those of ranks that no longer exist.
        """
        self._step = -1
        if step == 0:
            return
        with self._told(FOLDER):
            places = {file: NAME.fullmatch(file.name) for file in (self._own.folder / FOLDER).glob("step-*")}
            later = {file: place for file, place in places.items() if place and int(place["step"]) > step}
            ours = (file.name for file, place in later.items() if int(place["rank"]) % ranks == self._rank)
            self._own.remove(*(f"{FOLDER}/{name}" for name in ours))

    def put(self, step: int, records: Sequence[Record], updates: int = 1) -> None:
        """Hand over a batch made after `step` steps, which will be trained on. A step may have several batches.

        Args:
            records: those of this rank's rollouts; `see` refers to them by their positions.
            updates: how many updates will use each.
        """
        self._hand_on()
        self._batches = self._batches + 1 if step == self._step else 1
        self._step = step
        if self._ended:
            return
        ours = {"schema": SCHEMA, "step": step + 1, "rank": self._rank, "batch": self._batches}
        further = f"-batch-{self._batches}" if self._batches > 1 else ""
        name = f"{FOLDER}/step-{step + 1:06}-rank-{self._rank}{further}.{self._format}"
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name=FOLDER, daemon=True)
            self._writer.start()
            atexit.register(self.close)
        whole = [cast(Record, {**record, **ours}) for record in records]
        self._trained = name, TrainedBatch(whole, updates)

    def see(self, numbers: Sequence[int], update: Update) -> None:
        """Note an update that used rollouts of the last batch; after the last update the batch is written.

        Rollouts of a batch from before the run was resumed have no record.
        """
        if self._trained is not None and self._trained[1].see(numbers, update):
            self._hand_on()

    def _hand_on(self, patience: float = 0.0) -> None:
        """Queue the current batch for writing, if there is room within `patience` seconds."""
        trained, self._trained = self._trained, None
        if trained is None:
            return
        try:
            self._waiting.put(trained, timeout=patience)
        except queue.Full:
            logger.warning(f"{trained[0]} is not written: the disk is slower than the training.")

    def close(self) -> None:
        """Wait until all batches are written, for at most a minute once there is room in the queue."""
        self._hand_on(PATIENCE)
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
            self._end(
                f"Writing to {self._own.folder / FOLDER} takes longer than {PATIENCE:.0f} s, and the last rollouts "
                "are missing"
            )

    # ---- on the thread that writes

    def _write(self) -> None:
        while (batch := self._waiting.get()) is not None:
            name, trained = batch
            if not self._ended:
                with self._told(name):
                    self._write_file(name, list(map(self._readable, trained.records())))
            del batch, trained  # frees its tensors, which may be on an accelerator
        with self._told(FOLDER):
            self._own.add(*self._names)

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """End the recording on any error inside; training goes on."""
        try:
            yield
        except Exception as error:
            self._end(f"{name} could not be written ({type(error).__name__}: {error})")

    def _readable(self, record: Record) -> Record:
        """Return a record with the texts of its tokens and with secrets masked."""
        if self._texts is None:
            return self._masked(record)
        others: dict[str, Any] = {**record}
        prompt_ids, tokens = others.pop("prompt_ids"), others.pop("tokens")
        if self._masked.any:
            prompt_ids, _ = self._masked.of_tokens(prompt_ids, self._texts(prompt_ids))
        ids, texts = self._masked.of_tokens(tokens["ids"], self._texts(tokens["ids"]))
        shown = [text if sampled else None for text, sampled in zip(texts, tokens["sampled"], strict=True)]
        others = self._masked(others)
        return cast(Record, {**others, "prompt_ids": prompt_ids, "tokens": {**tokens, "ids": ids, "texts": shown}})

    def _write_file(self, name: str, records: Sequence[Record]) -> None:
        content = encoded(records, self._format)
        file = self._own.folder / name
        if self._bytes_there(file) + len(content) > self._most:
            self._end("The limit set by record_megabytes is reached")
            return
        draft = f"{name}.part"  # readers would take a partial file for a whole one
        self._own.claim(name, draft)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            (self._own.folder / draft).write_bytes(content)
            (self._own.folder / draft).replace(file)
        except OSError:
            (self._own.folder / draft).unlink(missing_ok=True)
            raise
        self._own.add(name, draft)
        self._names.append(name)
        for other in (f"{name.rpartition('.')[0]}.{format}" for format in FORMATS if format != self._format):
            if (self._own.folder / other).exists():  # left by a run that was resumed with another format
                self._own.remove(other)

    def _bytes_there(self, file: Path) -> int:
        """The size of this rank's other files."""
        others = file.parent.glob(f"step-*-rank-{self._rank}[.-]*")
        return sum(other.stat().st_size for other in others if other != file)

    def _end(self, why: str) -> None:
        if self._ended:
            return  # this is said only once
        self._ended = True
        logger.warning(f"{why}: no more rollouts are recorded. The run continues.")


class WithRun(TrainerCallback):
    """Tells a recorder when a run begins and when it has ended."""

    def __init__(self, recorder: Recorder, ranks: int):
        self._recorder, self._ranks = recorder, ranks

    def on_train_begin(self, args, state, control, **kwargs):
        self._recorder.begin(state.global_step, self._ranks)

    def on_train_end(self, args, state, control, **kwargs):
        self._recorder.close()
