"""a recipe -> seconds of its steps and of TRL's, by stage: same policy, data, tools and settings, in one process.

    ours   the trainer that `a2tgpo train` would make
    TRL    `GRPOTrainer` with the settings that it knows; if ours takes ratios of turns, it takes ratios of tokens

Their steps alternate, so that whatever slows the machine for a while slows both; the first step of each warms up. Each
samples its own rollouts, so the numbers of sampled tokens are given beside the seconds.
"""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from importlib.metadata import version

import torch
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig, GRPOTrainer

from ..plan.clock import LOSS, StepClock
from ..plan.measured import TRAINING_ALONE, batches_of_step
from ..recipe.recipe import Recipe, read_recipe
from .machine import device_name


WAYS = ("ours", "TRL")
STEP = "micro-steps"
STAGES = ("before the loss", "of it gain pass", "loss", "rest")
DERIVED = "generation_batch_size"  # TRL derives it from steps_per_generation, and refuses both together


@dataclass
class StepTimes:
    """What each step took, without the first."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # seconds of all threads
    stages: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    sampled: list[float] = field(default_factory=list)  # tokens
    peak_bytes: list[int] = field(default_factory=list)  # of an accelerator's memory

    def extend(self, other: "StepTimes") -> None:
        """Append the steps of another seed."""
        for name in ("seconds", "processor", "sampled", "peak_bytes"):
            getattr(self, name).extend(getattr(other, name))
        for stage, seconds in other.stages.items():
            self.stages[stage] += seconds

    @property
    def longest(self) -> float:
        """The longest step, as a multiple of the median."""
        return max(self.seconds) / statistics.median(self.seconds)


class Alternation:
    """Lets one of two threads run at a time; once one has ended, the other runs alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._turn, self._ended = 0, False

    def wait(self, place: int) -> None:
        """Wait until it is this thread's turn."""
        with self._condition:
            self._condition.wait_for(lambda: self._turn == place or self._ended)

    def hand_over(self, place: int) -> None:
        """Let the other thread run until it hands over."""
        with self._condition:
            self._turn = 1 - place
            self._condition.notify_all()
        self.wait(place)

    def end(self) -> None:
        with self._condition:
            self._ended = True
            self._condition.notify_all()


class AlternatingClock(StepClock):
    """Times the steps of a trainer except the first, and hands over after each."""

    def __init__(self, trainer: GRPOTrainer, hand_over: Callable[[], None]):
        super().__init__(trainer)
        self.time(trainer, "training_step", STEP)  # includes what comes before the loss
        self.times = StepTimes()
        self._hand_over, self._processor = hand_over, 0.0
        for display in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(display)

    def on_step_begin(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._processor = time.process_time()
        super().on_step_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step > 1:
            step, in_step, in_loss = self.seconds[-1], self.parts[STEP][-1], self.parts[LOSS][-1]
            self.times.seconds.append(step)
            self.times.processor.append(time.process_time() - self._processor)
            if torch.cuda.is_available():
                self.times.peak_bytes.append(torch.cuda.max_memory_allocated())
            self.times.stages["before the loss"].append(in_step - in_loss)
            self.times.stages["loss"].append(in_loss)
            self.times.stages["rest"].append(step - in_step)

    def on_log(self, args, state, control, logs, **kwargs):
        if state.global_step > 1 and "loss" in logs:  # not the summary at the end of training
            self.times.stages["of it gain pass"].append(logs.get("gain/seconds", 0.0) * batches_of_step(args))
            rollouts = args.per_device_train_batch_size * args.gradient_accumulation_steps
            self.times.sampled.append(logs["completions/mean_length"] * rollouts)
        if "loss" in logs:
            self._hand_over()


def measure(recipe: str, overrides: Sequence[str], steps: int, seeds: int, folder: str) -> dict[str, StepTimes]:
    """Time steps of both trainers with each of the seeds 0, 1, ..., unless the overrides name one."""
    found = {way: StepTimes() for way in WAYS}
    for seed in range(seeds):
        is_named = any(word == "--seed" or word.startswith("--seed=") for word in overrides)
        of_seed = overrides if is_named else [*overrides, "--seed", str(seed)]
        for way, times in _measure(recipe, of_seed, steps, f"{folder}/{seed}").items():
            found[way].extend(times)
    return found


def _measure(recipe: str, overrides: Sequence[str], steps: int, folder: str) -> dict[str, StepTimes]:
    """Train both trainers for this many steps after one that warms up, alternating step by step."""
    words = ["--config", recipe, *overrides, "--max_steps", str(steps + 1), "--output_dir", folder]
    words += [word for key, value in TRAINING_ALONE.items() for word in (f"--{key}", value)]
    trainers = (read_recipe(words).build_trainer(), make_theirs(read_recipe(words)))
    alternation = Alternation()

    def train(place: int) -> StepTimes:
        clock = AlternatingClock(trainers[place], lambda: alternation.hand_over(place))
        try:
            alternation.wait(place)
            trainers[place].train()
        finally:
            alternation.end()
        return clock.times

    # Ours runs in this thread: it handles signals, which only the main thread can.
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(train, 1)
        ours = train(0)
    return dict(zip(WAYS, (ours, theirs.result()), strict=True))


def make_theirs(recipe: Recipe) -> GRPOTrainer:
    """Return TRL's trainer for a recipe."""
    arguments = recipe.trainer_arguments()  # which completes the settings
    known = [one.name for one in fields(GRPOConfig) if one.init and one.name != DERIVED]
    settings = {name: getattr(recipe.args, name) for name in known}
    if settings["importance_sampling_level"] == "turn":
        settings["importance_sampling_level"] = "token"
    return GRPOTrainer(args=GRPOConfig(**settings), **arguments)


def describe() -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return f"{device_name(device)}; torch {torch.__version__}; TRL {version('trl')}"
