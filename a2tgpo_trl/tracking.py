"""credited batches, facts of a run -> the trackers that `report_to` names: a table of turns, gains by turn, how it was
made.

Metrics reach W&B, Trackio and TensorBoard by the callbacks of transformers, and so do the settings. The trackers also
get

    rollouts/turns           a table with a row for each turn of some rollouts, as text in TensorBoard
    gain/turn_1/histogram    gains of the turns at each depth, of the last batch before a line of the log
    recipe, git_commit, git_changed, versions      in the config of the run: as text in TensorBoard

A row has what `a2tgpo_trl/recording` writes of the turn: values before and after it, gain, z, advantage, clip scale.
The column `group` is the number of the prompt in the batch, and `rollout` counts, from 0, the rollouts of that group
that this process made: those of other processes are not counted. The table has rollouts of the main process; the
histograms have gains of all ranks. Rows are of the first groups of a batch, `table_turns` at most; a run has at most
`TABLES` tables, evenly spaced. Nothing is asked of other ranks. If a tracker fails here, it gets no more of this and
the run goes on.

Secrets. Texts of the table and of the config that is sent here are masked as in the records (`recording/secrets.py`).
In that config, texts whose names suggest a secret are masked too, with everything below such a name, and so are
passwords in URLs. Not masked here: the settings, which the callbacks of transformers send to each tracker unchanged (a
secret in `model_init_kwargs`, say; of `hub_token` and its like transformers sends no value), numbers, a secret in a
text with another name, and the tables of `log_completions`, which TRL sends.
"""

import html
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from .recording import Masks, Schedule
from .recording.secrets import without_url_passwords
from .report.metrics import GAIN_HISTOGRAM, TURN_TABLE
from .report.provenance import provenance
from .rollout.reading import Turn, cut, plain, question, turns_of
from .rollout.records import Record
from .secret_names import setting_is_secret
from .turns import LOGGED_TURNS


logger = logging.getLogger(__name__)

OF_TRACKERS = (WandbCallback, TrackioCallback, TensorBoardCallback)
TABLES = 50  # in a run: each is a file that a tracker uploads
BINS = 32
MOST_LINES, MOST_CHARACTERS = 20, 1000  # of a text in a row

Row = dict[str, Any]
COLUMNS = (
    *("step", "group", "rollout", "turn", "question", "text", "calls", "result", "status"),
    *("value_before", "value_after", "gain", "z", "advantage", "clip_scale", "outcome"),
)


class Tracking(TrainerCallback):
    """Keeps what is sent to trackers with the next line of the log. Only the main process has trackers."""

    def __init__(
        self, most_rows: int, is_main: bool, callbacks: Callable[[], Sequence[TrainerCallback]], stride: int = 1
    ):
        """
        Args:
            most_rows: the most rows of a table; 0 for no tables.
            is_main: whether this is the main process.
            callbacks: returns the trainer's callbacks, which include the trackers'.
            stride: steps from one batch to the next.
        """
        self._stride = stride
        self._most_rows, self._is_main, self._callbacks = most_rows, is_main, callbacks
        self.facts: dict[str, Any] = {}  # what is added to the config of the run, such as its recipe
        self._trackers: list[Tracker] = []
        self._schedule = Schedule(1, stride)
        self._made: tuple[int, Sequence[Record]] = 0, ()  # the step that trains on these rollouts
        self._gains: dict[int, np.ndarray] = {}
        self._masked = Masks(os.environ)

    # ---- from the trainer

    def wants(self, step: int) -> bool:
        """Whether rollouts made after `step` steps are to be shown."""
        return bool(self._trackers) and self._most_rows > 0 and self._schedule.is_due(step)

    def put(self, step: int, records: Sequence[Record]) -> None:
        """Take the rollouts that this process made after `step` steps, with their credit."""
        self._made = step + 1, records

    def see_gains(self, gains_NK: Tensor, round: int) -> None:
        """Take the gains of all ranks' rollouts; the first round of a batch replaces the previous batch."""
        if not self._trackers:
            return
        before = self._gains if round > 1 else {}
        columns = gains_NK[:, :LOGGED_TURNS].cpu().double().numpy().T
        of_turns = {turn: column[np.isfinite(column)] for turn, column in enumerate(columns, start=1)}
        joined = {turn: np.concatenate([before.get(turn, gains[:0]), gains]) for turn, gains in of_turns.items()}
        self._gains = {**before, **{turn: gains for turn, gains in joined.items() if len(gains)}}

    # ---- to the trackers

    def on_train_begin(self, args, state, control, **kwargs):
        self._trackers = []
        self._schedule = Schedule(max(1, math.ceil(state.max_steps / TABLES)), self._stride)
        self._made, self._gains = (0, ()), {}
        if self._is_main:
            self._attempt(self._begin)

    def _begin(self) -> None:
        self._trackers = list(filter(None, map(tracker_of, self._callbacks())))
        if not self._trackers:
            return  # without running git
        # A recipe may have dates, which not all trackers accept.
        plain_facts = json.loads(json.dumps(without_secrets({**self.facts, **provenance(Path())})))
        shown = self._masked(plain_facts)
        for tracker in list(self._trackers):
            self._attempt(partial(tracker.describe, shown), tracker)

    def on_log(self, args, state, control, **kwargs):
        made, gains = self._made, self._gains
        self._made, self._gains = (0, ()), {}
        for tracker in list(self._trackers):
            self._attempt(partial(self._send, tracker, state.global_step, made, gains), tracker)

    def _send(
        self,
        tracker: "Tracker",
        step: int,
        made: tuple[int, Sequence[Record]],
        gains: Mapping[int, np.ndarray],
    ) -> None:
        made_for, records = made
        rows = list(islice(rows_of(records, made_for, self._masked), self._most_rows))
        if rows or gains:
            tracker.send(step, rows, gains)

    def _attempt(self, act: Callable[[], None], tracker: "Tracker | None" = None) -> None:
        """Do this for one tracker, or for all; a tracker that fails gets no more."""
        try:
            act()
        except Exception as error:  # any error: training goes on
            self._trackers = [one for one in self._trackers if tracker is not None and one is not tracker]
            logger.warning(
                f"{'Trackers' if tracker is None else tracker.name} did not accept tables and histograms of this run "
                f"({type(error).__name__}: {error}). No more of them are sent there; the run continues."
            )


# ---- the trackers


class Tracker(Protocol):
    """Takes what a run was made with, once, and rows of turns and gains by turn with lines of the log."""

    name: str

    def describe(self, facts: Mapping[str, Any]) -> None: ...

    def send(self, step: int, rows: Sequence[Row], gains: Mapping[int, np.ndarray]) -> None: ...


def tracker_of(callback: TrainerCallback) -> Tracker | None:
    """Return the tracker that a callback of transformers has opened; None for other callbacks."""
    if isinstance(callback, WandbCallback):
        import wandb

        return OfModule("wandb", wandb)
    if isinstance(callback, TrackioCallback):
        import trackio

        return OfModule("trackio", trackio)
    return OfTensorBoard(callback) if isinstance(callback, TensorBoardCallback) else None


class OfModule:
    """W&B, or Trackio, which has the same functions."""

    def __init__(self, name: str, module: Any):
        self.name, self._module = name, module

    def describe(self, facts: Mapping[str, Any]) -> None:
        self._module.config.update(dict(facts), allow_val_change=True)

    def send(self, step: int, rows: Sequence[Row], gains: Mapping[int, np.ndarray]) -> None:
        logged = {
            histogram_name(turn): self._module.Histogram(np_histogram=np.histogram(values, BINS))
            for turn, values in gains.items()
        }
        if rows:
            data = [[row[column] for column in COLUMNS] for row in rows]
            logged[f"train/{TURN_TABLE}"] = self._module.Table(columns=list(COLUMNS), data=data)
        self._module.log({**logged, "train/global_step": step})


class OfTensorBoard:
    """TensorBoard, which has no tables and gets texts in Markdown."""

    name = "tensorboard"

    def __init__(self, callback: TensorBoardCallback):
        self._callback = callback  # a further training gives it a new writer

    def describe(self, facts: Mapping[str, Any]) -> None:
        for name, value in facts.items():
            text = json.dumps(value, indent=2)
            self._callback.tb_writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()))

    def send(self, step: int, rows: Sequence[Row], gains: Mapping[int, np.ndarray]) -> None:
        writer = self._callback.tb_writer
        for turn, values in gains.items():
            writer.add_histogram(histogram_name(turn), values, step, bins=np.histogram_bin_edges(values, BINS))
        if rows:
            writer.add_text(f"train/{TURN_TABLE}", markdown(rows), step)
        writer.flush()


def histogram_name(turn: int) -> str:
    """Example: 1 -> "train/gain/turn_1/histogram", beside "train/gain/turn_1/mean" """
    return f"train/{GAIN_HISTOGRAM.format(turn=f'turn_{turn}')}"


# ---- rows


def rows_of(records: Sequence[Record], step: int, masked: Callable[[Any], Any]) -> Iterator[Row]:
    """Yield a row for each turn, rollout by rollout. Turns count from 1, rollouts of a group from 0."""
    rollouts: Counter[int] = Counter()
    for record in records:
        group = record["group"]
        for place, (turn, happened) in enumerate(zip_longest(turns_of(record), record.get("turns", ()))):
            turn = turn or Turn("", [], [])  # cut off before it wrote anything
            values = record.get("values", ())
            yield {
                **{"step": step, "group": group, "rollout": rollouts[group], "turn": place + 1},
                "question": _text(question(record), masked) if record["prompt"] else "",
                "text": _text(turn.said, masked),
                "calls": _text("\n".join(turn.calls), masked),
                "result": _text("\n".join(turn.read), masked),
                "status": happened["status"] if happened else "ok",
                "value_before": _nth(values, place),
                "value_after": _nth(values, place + 1),
                "gain": _nth(record.get("gains", ()), place),
                "z": _nth(record["scores"], place),
                "advantage": _nth(record["advantages"], place),
                "clip_scale": _nth(record["clip_scale"], place),
                "outcome": record["outcome"],
            }
        rollouts[group] += 1


def _text(text: str, masked: Callable[[Any], Any]) -> str:
    """Mask a text before cutting it, because half a secret would not be recognised."""
    return cut(plain(masked(text)), MOST_LINES, MOST_CHARACTERS)


def _nth(values: Sequence[float | None], place: int) -> float | None:
    return values[place] if place < len(values) else None


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table.

    Example: a text "a|b", "<answer>" on two lines -> "a&#124;b<br>&lt;answer&gt;"
    """
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([_cell(row[column]) for column in COLUMNS] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return html.escape(value).replace("|", "&#124;").replace("\n", "<br>")
    return "" if value is None else f"{value:.6g}"


def without_secrets(value: Any, name: str = "") -> Any:
    """Return a setting for JSON; texts below names that suggest a secret, and passwords in URLs, are masked.

    Example: {"hub_token": "abc", "tokenizer": "x"} -> {"hub_token": "<HUB_TOKEN>", "tokenizer": "x"}
    """
    if isinstance(value, Mapping):
        # Everything below a secret's name is masked under that name.
        return {
            str(key): without_secrets(inside, name if setting_is_secret(name) else str(key))
            for key, inside in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(inside, name) for inside in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return f"<{name.upper()}>" if setting_is_secret(name) else without_url_passwords(str(value), "password")
