"""a recipe -> what recording its rollouts costs: steps with and without it, in pairs, in one run.

    python tests/benches/recording_cost.py quickstart --pairs 60 --record_format parquet

All steps do the same work: the same questions, the same seeds, and a learning rate of 0. In each pair one step is
recorded, the first or the second at random. A recorded step ends when its file is written, although training would not
wait for it: this is the most that recording can cost, on a machine with a single core.

If the machine does other work as well, pairs differ by more than recording costs. So there is a second figure: the
processor time of the calls that record, on both threads, divided by that of a step without recording.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback

from a2tgpo_trl.cli.bench import add_numbers, show, table
from a2tgpo_trl.cli.bench_step import describe
from a2tgpo_trl.plan.clock import StepClock
from a2tgpo_trl.plan.measured import TRAINING_ALONE, steps_of_batch
from a2tgpo_trl.recipe.recipe import read_recipe
from a2tgpo_trl.recording import Recorder
from a2tgpo_trl.report.progress import quiet_libraries


class Drawn(Recorder):
    """Records one step of each pair, at random, and can be waited for."""

    def __init__(self, recorder: Recorder, seed: int):
        vars(self).update(vars(recorder))
        self._draw, self._recorded = random.Random(seed), dict[int, bool]()
        self.inside = 0.0  # processor seconds that recording took
        for method in ("put", "see", "_write"):
            self.count(self, method)

    def is_due(self, step: int) -> bool:
        first = step - step % 2
        if first not in self._recorded:
            self._recorded[first] = self._draw.random() < 0.5
            self._recorded[first + 1] = not self._recorded[first]
        return self._recorded[step]

    def count(self, owner: Any, method: str) -> None:
        """Add the processor time of this method's calls to `inside`."""
        function = getattr(owner, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.inside += time.thread_time() - start

        setattr(owner, method, counted)

    def wait(self) -> None:
        """Wait until everything handed over is written."""
        self.close()
        assert not self._ended, "the recording has ended"


class RecordingClock(StepClock):
    """Clock and processor seconds of steps, in all threads, including the writing of their files."""

    def __init__(self, trainer: Any, recorder: Drawn):
        super().__init__(trainer)
        self._recorder = recorder
        self.processor: list[float] = []
        for display in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(display)

    def on_step_begin(self, args, state, control, **kwargs):
        self._began = time.process_time()
        super().on_step_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        self._recorder.wait()
        super().on_step_end(args, state, control, **kwargs)
        self.processor.append(time.process_time() - self._began)


@dataclass
class Pairs:
    """Seconds of neighbouring steps, without and with recording."""

    without: list[float] = field(default_factory=list)
    recorded: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return sorted(one / other for one, other in zip(self.recorded, self.without, strict=True))

    def ratio(self, every: int = 1) -> float:
        """The median ratio of pairs, if one in `every` steps is recorded.

        Example: 1.10 where each is; 1.02 where every fifth is
        """
        return 1 + (statistics.median(self.ratios) - 1) / every


@dataclass(frozen=True)
class Cost:
    """Seconds of steps on the clock, and of processors in all threads."""

    clock: Pairs
    processor: Pairs
    inside: float  # processor seconds of recording, per recorded step
    bytes_of_step: float  # per recorded step

    def share(self, every: int = 1) -> float:
        """Processor time of recording divided by that of an unrecorded step, if one in `every` steps is recorded."""
        return self.inside / statistics.median(self.processor.without) / every


def measure(words: Sequence[str], pairs: int, seed: int, folder: str) -> Cost:
    """Train this many pairs of steps, after a warm-up pair."""
    settings = {
        **TRAINING_ALONE,
        "max_steps": str(2 * (pairs + 1)),
        "learning_rate": "0",
        "lr_scheduler_type": "constant",
    }
    words = [*words, "--record_every", "1", "--output_dir", folder]
    recipe = read_recipe([*words, *(word for key, value in settings.items() for word in (f"--{key}", value))])
    if steps_of_batch(recipe) != 1:
        raise ValueError("A batch must be one step: leave num_iterations and steps_per_generation out.")
    trainer = recipe.build_trainer()
    first = trainer.args.generation_batch_size // trainer.num_generations
    trainer.train_dataset = trainer.train_dataset.select(range(first))  # one batch, over and over
    trainer._rollout_seeds = lambda prompt_ids: list(range(len(prompt_ids)))
    recorder = Drawn(trainer._recorder, seed)
    trainer._recorder = recorder
    for method in ("_make_records", "_credited_records", "_of_this_rank"):  # an unrecorded step makes no records
        recorder.count(trainer, method)
    clock = RecordingClock(trainer, recorder)
    trainer.train()
    sizes = [file.stat().st_size for file in Path(folder, "rollouts").glob("step-*")]
    cost = Cost(Pairs(), Pairs(), recorder.inside / len(sizes), statistics.mean(sizes))
    for step in range(2, len(clock.seconds)):
        for pairs_of, seconds in ((cost.clock, clock.seconds), (cost.processor, clock.processor)):
            (pairs_of.recorded if recorder.is_due(step) else pairs_of.without).append(seconds[step])
    return cost


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Times steps of a recipe with and without recording, in pairs.")
    parser.add_argument("recipe", help="name or file of a recipe; further words are its settings")
    numbers = (
        ("--pairs", 2, 40, "pairs of steps, after one that warms up"),
        ("--draw", 0, 0, "seed of these choices"),
    )
    add_numbers(parser, numbers)
    args, settings = parser.parse_known_args(words)
    quiet_libraries()
    show(describe())
    with tempfile.TemporaryDirectory() as folder:
        cost = measure(["--config", args.recipe, *settings], args.pairs, args.draw, folder)
    heads = ["", "without\ns", "recorded\ns", "ratio,\nmedian", "middle half", "of every\nfifth step"]
    lines = [_line(name, pairs) for name, pairs in (("clock", cost.clock), ("processor", cost.processor))]
    show(table(heads, lines))
    show(
        f"in recording: {1000 * cost.inside:.1f} ms of processors, {cost.share():.2%} of a step that is recorded, "
        f"{cost.share(5):.2%} of every fifth; {cost.bytes_of_step:,.0f} bytes"
    )
    return 0


def _line(name: str, pairs: Pairs) -> list[str]:
    low, high = (pairs.ratios[round(share * (len(pairs.ratios) - 1))] for share in (0.25, 0.75))
    medians = [f"{statistics.median(seconds):.4g}" for seconds in (pairs.without, pairs.recorded)]
    return [name, *medians, f"{pairs.ratio():.3f}", f"{low:.3f} to {high:.3f}", f"{pairs.ratio(5):.3f}"]


if __name__ == "__main__":
    sys.exit(main())
