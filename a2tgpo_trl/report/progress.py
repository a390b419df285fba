"""what the trainer logs -> one line a step, and one progress bar below the lines on a terminal."""

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


# metrics in a step's line: metric -> its name there, and its format. Metrics that were not logged are left out.
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
    """The bar, and lines above it. Only the main process shows them."""

    def __init__(self, shown: bool = True, bars: bool = True):
        self.console = Console(quiet=not shown, soft_wrap=True, markup=False, emoji=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not (shown and bars and self.console.is_terminal),
        )

    def close(self) -> None:
        """Restore the terminal, even after an error in the middle of a bar."""
        self._progress.stop()

    def line(self, text: Any) -> None:
        """Print a line or a table above the bar."""
        self.console.print(text, highlight=False)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Any]:
        """Show a bar for one stretch of work; gives a function that sets how much of it is done."""
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
    """Writes the first warning from each place in a library's code; some repeat with every row of every batch."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[tuple[str, int]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        place = (record.pathname, record.lineno)
        if place not in self._seen:
            self._seen.add(place)
            sys.stderr.write(f"{record.name}: {record.getMessage()}\n")


def quiet_libraries() -> None:
    """Let libraries report errors only, but keep warnings from this package, and from TRL, which are about the run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore")
    warnings.filterwarnings(
        "default", module=r"a2tgpo_(trl|recipe_)|trl\."
    )  # from this package, from files that a recipe names, from TRL
    trl = logging.getLogger("trl")
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # other processes on the machine would repeat the warnings
    trl.setLevel(logging.WARNING if first else logging.ERROR)
    if not any(isinstance(handler, OncePerPlace) for handler in trl.handlers):
        trl.addHandler(OncePerPlace())
    for name in ("transformers", "accelerate", "datasets", "peft", "torch.distributed", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    # A warning of weights missing from a checkpoint, which are then drawn at random, must be seen.
    logging.getLogger("transformers.modeling_utils").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
