"""words of a recipe -> a few steps of real training in this process -> what they took, as JSON in a file.

    python -m a2tgpo_trl.plan.measured FILE --config RECIPE [--key value ...]

Run in a process of its own: the most memory that a process has ever had cannot be taken back. `tensor_bytes` is
resident memory at its peak less what was resident after the imports, one step of a model of a few hundred weights, and
the reading of the recipe with its data. That is tensors, if the C library gives back what is freed (`GIVE_BACK`); by
default it keeps much of it, which makes steps faster.

Seconds are those of the main thread on a processor (`calibration.clock`): waiting for tools and for other processes is
left out, but in `wall_seconds`.
"""

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from ..recipe.recipe import read_recipe
from ..report.progress import quiet_libraries
from ..rollout.records import Record
from ..trainer import A2TGPOTrainer
from .calibration import clock


# Variables of the environment under which glibc maps tensors one by one.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


@dataclass
class Run:
    """What a run took. A list has one entry for each step."""

    tensor_bytes: int = 0
    step_seconds: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    records: list[list[Record]] = field(default_factory=list)


class StepTimes(TrainerCallback):
    """Seconds of each step, and of its parts as a plan names them."""

    def __init__(self, run: Run):
        self._run = run
        self._parts: dict[str, float] = {}

    def watch(self, trainer: A2TGPOTrainer) -> None:
        """Time methods of a trainer, and keep the turns of its rollouts."""
        self._time(trainer, "_sample", "sampling")
        self._time(trainer, "_prepare_inputs", "before the loss")
        self._time(trainer, "training_step", "training steps")
        if trainer._gain_pass is not None:
            self._time(trainer._gain_pass, "run", "gain pass")
        trainer.on_rollouts = self._keep

    def _time(self, owner: Any, name: str, part: str) -> None:
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            result = method(*args, **kwargs)
            self._parts[part] = self._parts.get(part, 0.0) + clock() - start
            return result

        setattr(owner, name, timed)

    def _keep(self, records: list[Record]) -> None:
        self._run.records.append([{"turns": record["turns"]} for record in records])

    def on_step_begin(self, args, state, control, **kwargs):
        self._start, self._wall_start = clock(), time.perf_counter()
        self._parts = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._optimizer_start = clock()

    def on_step_end(self, args, state, control, **kwargs):
        now, parts = clock(), self._parts
        stages = {
            "sampling": parts["sampling"],
            "gain pass": parts.get("gain pass", 0.0),
            "loss and backward": parts["training steps"] - parts["before the loss"],
            "optimiser": now - self._optimizer_start,
        }
        stages["rest"] = now - self._start - sum(stages.values())
        self._run.step_seconds.append(now - self._start)
        self._run.wall_seconds.append(time.perf_counter() - self._wall_start)
        for stage, seconds in stages.items():
            self._run.stages.setdefault(stage, []).append(seconds)


def resident_peak() -> int:
    """Bytes; kilobytes is what Linux counts in."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def load_libraries() -> None:
    """One step of a model of a few hundred weights: what libraries load at their first use is not the run's."""
    size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=1, vocab_size=16, max_position_embeddings=64))
        ids = torch.ones(1, 4, dtype=torch.long)
        model(input_ids=ids, attention_mask=ids, labels=ids).loss.backward()
        torch.optim.AdamW(model.parameters(), fused=True).step()
        model.generate(ids, attention_mask=ids, max_new_tokens=2, do_sample=True, pad_token_id=0)


def main(words: Sequence[str]) -> None:
    file, *words = words
    quiet_libraries()
    load_libraries()
    recipe = read_recipe(words)
    before = psutil.Process().memory_info().rss
    run = Run()
    times = StepTimes(run)
    trainer = recipe.build_trainer([times])
    times.watch(trainer)
    trainer.train()
    run.tensor_bytes = resident_peak() - before
    Path(file).write_text(json.dumps(asdict(run)))


if __name__ == "__main__":
    main(sys.argv[1:])
