"""what the trainer logs -> one line a step, and one progress bar below them on a terminal."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from ..rewards import RIGHT_OR_WRONG


# what a step's line shows: metric -> its name there, and how it is written. What was not logged is left out.
SHOWN = {
    "reward": ("reward", "{:.2f}"),
    **{f"rewards/{name}/mean": (name.replace("_", " "), "{:.2f}") for name in RIGHT_OR_WRONG},
    "turns/mean": ("turns", "{:.1f}"),
    "gain/mean": ("gain", "{:+.2f}"),
    "loss": ("loss", "{:+.4f}"),
    "step_time": ("seconds", "{:.1f}"),
}


def step_line(step: int, steps: int, logs: dict[str, Any]) -> str:
    """One step in one line.

    Example: 3, 40, {"reward": 0.5, "turns/mean": 3.26, "step_time": 5} -> "step  3/40  reward 0.50  turns 3.3 ..."
    """
    parts = [
        f"{name} {form.format(logs[key])}"
        for key, (name, form) in SHOWN.items()
        if isinstance(logs.get(key), (int, float))
    ]
    return "  ".join([f"step {step:>{len(str(steps))}}/{steps}", *parts])


class Display:
    """The bar, and lines above it. Only the main process has one that shows anything."""

    def __init__(self, shown: bool = True, bars: bool = True):
        self.console = Console(quiet=not shown, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not (shown and bars and self.console.is_terminal),
        )

    def close(self) -> None:
        """Give the terminal back, also after an error in the middle of a bar."""
        self._progress.stop()

    def line(self, text: Any) -> None:
        """A line, or a table, above the bar."""
        self.console.print(text, highlight=False)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Any]:
        """A bar for one stretch of work; gives the function that sets how much of it is done."""
        with self._progress:
            task = self._progress.add_task(description, total=total)
            try:
                yield lambda done: self._progress.update(task, completed=done)
            finally:
                self._progress.remove_task(task)


class StepLines(TrainerCallback):
    """Writes a line for each logged step."""

    def __init__(self, display: Display):
        self._display = display
        self._bar: Any = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._bar = self._display.bar("training", state.max_steps)
        self._update = self._bar.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self._update(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "train_runtime" in logs:
            return
        own = {key.removeprefix("eval_"): value for key, value in logs.items()}
        line = step_line(state.global_step, state.max_steps, own)
        self._display.line(f"{line}  (evaluation)" if own.keys() != logs.keys() else line)

    def on_train_end(self, args, state, control, **kwargs):
        self._bar.__exit__(None, None, None)


class OncePerPlace(logging.Handler):
    """Writes the first warning of each place in a library's code: some come again with every row of every batch."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[tuple[str, int]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        place = (record.pathname, record.lineno)
        if place not in self._seen:
            self._seen.add(place)
            sys.stderr.write(f"{record.name}: {record.getMessage()}\n")


def quiet_libraries() -> None:
    """Libraries report errors only; warnings of this package stay, and those of TRL, which are about the run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore")
    warnings.filterwarnings(
        "default", module=r"a2tgpo_(trl|recipe_)|trl\."
    )  # ours, those of files a recipe names, TRL's
    trl = logging.getLogger("trl")
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # the others of a machine would warn of the same
    trl.setLevel(logging.WARNING if first else logging.ERROR)
    if not any(isinstance(handler, OncePerPlace) for handler in trl.handlers):
        trl.addHandler(OncePerPlace())
    for name in ("transformers", "accelerate", "datasets", "peft", "torch.distributed", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    # Weights that are missing in a checkpoint, and so drawn at random, are no noise.
    logging.getLogger("transformers.modeling_utils").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
