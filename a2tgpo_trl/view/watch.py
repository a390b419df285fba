"""a run's folder while it is written to -> what is new in it, step by step; a group on request.

Only the row of each group and the numbers of each step are kept. A file is read again when its time or its size has
changed. If files are gone, or shorter than they were, the run is taken to have started over: everything is read again.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report.series import SCORES, STATE
from ..resume.folders import checkpoints_of
from ..rollout.reading import OF_TRAINING, Record, files_like, plain
from .curves import adds_credit, batches, envelope_of, of_log, of_records, shown_by_step, turns_of_batch, turns_of_log
from .groups import groups_of, key_of, line, shown
from .journal import Journal
from .run import read_log, read_scores, records_in


OF_STEP = re.compile(r"step-(\d+)-rank-\d+(-batch-\d+)?\.(jsonl|parquet)")

# Errors caused by records that have our keys, but unexpected values.
STRANGE = (LookupError, TypeError, AttributeError, ValueError)

Mark = tuple[int, int, int]  # of a file: inode, size, time of the last change
Marks = Mapping[Path, Mark]


class Gone(Exception):
    """What was asked for no longer exists: the run has started over."""


class Watch:
    """Looks at the folder of a run, and puts what it finds in a journal."""

    def __init__(self, folder: Path, number: int, journal: Journal):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder. Name the output_dir of a run.")
        self.folder, self._run, self._journal = folder, number, journal
        self.begun = 0  # how often the run has started over
        self._forget()
        journal.put(number, "begun", "", [0, None])

    def _forget(self) -> None:
        self.steps: dict[int, Marks] = {}  # files of each step, as they were read
        self.due = 0  # number of steps still to read
        self._keys: dict[int, set[str]] = {}  # of groups, by step; a step that is left out has no entry
        self._recorded: dict[int, dict[str, float]] = {}
        self._log: Sequence[dict[str, Any]] = ()
        self._of_log: Marks | None = None  # the files that the log and the scores are read from
        self._put: dict[str, set[int]] = {"curves": set(), "logged": set()}
        self._others: list[str] = []  # names of files that belong to no step
        self._notes_of_step: dict[int, list[str]] = {}
        self._notes_of_log: list[str] = []

    def look(self, until: float) -> bool:
        """Read what is new, at least one step, until that time. Return whether everything was read."""
        now = self._files()
        was = {file: mark for marks in self.steps.values() for file, mark in marks.items()}
        if any(file not in now or now[file][1] < mark[1] for file, mark in was.items()):
            self._begin_anew()
        by_step: dict[int, dict[Path, Mark]] = {}
        for file, mark in now.items():
            by_step.setdefault(_step_of(file), {})[file] = mark
        due = sorted(step for step, marks in by_step.items() if self.steps.get(step) != marks)
        for number, step in enumerate(due):
            if number and time.monotonic() > until:
                break
            self._read_step(step, by_step[step])
        self.due = sum(self.steps.get(step) != marks for step, marks in by_step.items())
        if self._read_log() or due:
            self._settle("curves", shown_by_step(of_log(self._log), self._recorded))
        self._journal.put(self._run, "notes", "", self._notes())
        return self.due == 0

    def _files(self) -> dict[Path, Mark]:
        found = files_like(self.folder, OF_TRAINING)
        self._others = [file.name for file in found if not OF_STEP.fullmatch(file.name)]
        return _marks(file for file in found if OF_STEP.fullmatch(file.name))

    def _begin_anew(self) -> None:
        self._journal.forget(self._run)
        self._forget()
        self.begun += 1
        self._journal.put(self._run, "begun", "", [self.begun, time.time()])

    # ---- a step

    def _read_step(self, step: int, marks: Marks) -> None:
        records, notes = _read(marks)
        self.steps[step], self._notes_of_step[step] = marks, notes
        try:
            lines = {key_of(group): line(group) for group in groups_of(records)}
            numbers = [(of, of_records(one), turns_of_batch(one), envelope_of(one)) for of, one in batches(records)]
        except STRANGE as error:
            notes.append(f"Step {step} is left out: {_not_ours(error)}")
            self._leave_out(step)
            return
        for key in self._keys.get(step, set()) - lines.keys():
            self._journal.put(self._run, "groups", key, None)
        for key, one in lines.items():
            self._journal.put(self._run, "groups", key, one)
        self._keys[step] = set(lines)
        for of, curves, turns, envelope in numbers:
            self._recorded[of] = curves
            self._journal.put(self._run, "turns", of, turns)
            self._journal.put(self._run, "envelopes", of, envelope)

    def _leave_out(self, step: int) -> None:
        """Remove what was known about a step."""
        for key in self._keys.pop(step, set()):
            self._journal.put(self._run, "groups", key, None)
        if self._recorded.pop(step, None) is not None:
            for kind in ("turns", "envelopes"):
                self._journal.put(self._run, kind, step, None)

    # ---- log and scores

    def _read_log(self) -> bool:
        """Return whether it was read again. While a file is incomplete, what was read of it before stays."""
        logs = [self.folder / STATE, *(one / STATE for one in checkpoints_of(self.folder))]
        marks = _marks([*logs, *(self.folder / SCORES / f"{when}.json" for when in ("before", "after"))])
        if marks == self._of_log:
            return False
        try:
            log, self._notes_of_log = read_log(self.folder)
            scores = read_scores(self.folder, log, max([entry["step"] for entry in log] or [*self.steps, 0]))
        except (ValueError, OSError) as error:
            self._notes_of_log = [plain(str(error))]
            return False
        self._log = log
        self._journal.put(self._run, "scores", "", scores)
        self._settle("logged", {entry["step"]: turns for entry in log if (turns := turns_of_log(entry))})
        self._of_log = marks
        return True

    def _settle(self, kind: str, wanted: Mapping[int, Any]) -> None:
        """Put these values, by step, in the journal, and remove all other steps of this kind."""
        for step in self._put[kind] - wanted.keys():
            self._journal.put(self._run, kind, step, None)
        for step, value in sorted(wanted.items()):
            self._journal.put(self._run, kind, step, value)
        self._put[kind] = set(wanted)

    def _notes(self) -> list[str]:
        notes = [note for _, of_step in sorted(self._notes_of_step.items()) for note in of_step]
        notes += [f"{plain(name)} is not a file that training writes, and is left out." for name in self._others]
        if not self.folder.exists():
            return [f"There is no folder {plain(str(self.folder))} yet. Waiting for it."]
        if not self.steps and (self.folder / STATE).exists():
            return ["It has no records of rollouts: train with --record_every N to have them.", *notes]
        if not self.steps:
            return ["It has no records yet. Waiting for the first (train with --record_every N).", *notes]
        return [*notes, *self._notes_of_log]

    # ---- rollouts, on request

    def group(self, begun: int, key: str) -> dict[str, Any]:
        """Return a group as the page shows it."""
        steps = [step for step, keys in self._keys.items() if key in keys]
        if begun != self.begun or not steps:
            raise Gone
        records, _ = _read(self.steps[steps[0]])
        try:
            has_credit = adds_credit(records)
            found = [shown(group, has_credit) for group in groups_of(records) if key_of(group) == key]
        except STRANGE as error:
            raise ValueError(f"step {steps[0]}: {_not_ours(error)}") from error
        if not found:
            raise Gone
        return found[0]

    def search(self, begun: int, words: str, first: int, until: float) -> tuple[list[str], int | None, float]:
        """Return the keys of groups that contain these words in any text, from step `first`, as far as time allows.

        Also return the step to continue from (None if there is none) and the share of the steps that is done.
        """
        if begun != self.begun:
            raise Gone
        steps = sorted(self._keys)
        left = [step for step in steps if step >= first]
        found: list[str] = []
        while left:
            found += self._found_in(left.pop(0), words)
            if left and time.monotonic() > until:
                return found, left[0], 1 - len(left) / len(steps)
        return found, None, 1.0

    def _found_in(self, step: int, words: str) -> list[str]:
        records, _ = _read(self.steps[step])
        try:
            return [key_of(group) for group in groups_of(records) if holds(shown(group, False), words)]
        except STRANGE as error:  # they sufficed for the table, or were overwritten since
            note = f"Step {step} is not searched: {_not_ours(error)}"
            if note not in self._notes_of_step[step]:
                self._notes_of_step[step].append(note)
            return []


def _not_ours(error: Exception) -> str:
    return f"its records are not in the form that training writes ({plain(repr(error))})."


def _step_of(file: Path) -> int:
    name = OF_STEP.fullmatch(file.name)
    assert name is not None
    return int(name[1])


def _marks(files: Iterator[Path] | Sequence[Path]) -> dict[Path, Mark]:
    found = {}
    for file in files:
        try:
            state = file.stat()
        except OSError:  # gone by now, or not for this user: the next look tries again
            continue
        found[file] = (state.st_ino, state.st_size, state.st_mtime_ns)
    return found


def _read(marks: Marks) -> tuple[list[Record], list[str]]:
    """Return the records of a step's files, and notes about them."""
    found: list[Record] = []
    notes = []
    for file in sorted(marks):
        try:
            records, is_whole = records_in(file)
        except FileNotFoundError:  # the next look sees it
            continue
        except (ValueError, OSError) as error:
            notes.append(plain(str(error)))
            continue
        found += records
        if not is_whole:
            notes.append(f"{file.name}: its last line is incomplete, and is left out.")
    return found, notes


NO_TEXTS = ("pieces", "status", "ended")  # a turn's text again, token by token; and our own words


def holds(value: Any, words: str) -> bool:
    """Whether these words (in lower case) are in any text that the page shows of a group."""
    if isinstance(value, str):
        return words in value.lower()
    if isinstance(value, dict):
        return any(holds(inside, words) for name, inside in value.items() if name not in NO_TEXTS)
    return isinstance(value, list) and any(holds(inside, words) for inside in value)
