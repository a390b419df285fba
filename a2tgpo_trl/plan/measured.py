"""words of a recipe -> a few steps of real training in this process -> what they took, as JSON in a file.

    python -m a2tgpo_trl.plan.measured FILE --config RECIPE [--key value ...]

Run in a process of its own: the most memory that a process has ever had cannot be taken back. Memory is resident
memory at its peak less what was resident after the imports and one step of a model of a few hundred weights, that is
tensors, and what the run loads and allocates beside them.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from ..progress import quiet_libraries
from ..recipe import read_recipe
from ..trainer import A2TGPOTrainer


@dataclass
class Run:
    """What a run took. A list has one entry for each step."""

    tensor_bytes: int = 0
    step_seconds: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    records: list[list[dict[str, Any]]] = field(default_factory=list)


class StepTimes(TrainerCallback):
    """Seconds of each step, and of its parts as a plan names them."""

    def __init__(self, run: Run):
        self._run = run
        self._preparing = self._training = 0.0
        self.trainer: A2TGPOTrainer | None = None

    def watch(self, trainer: A2TGPOTrainer) -> None:
        """Time two methods of a trainer and keep the turns of its rollouts."""
        self.trainer = trainer
        for name, add in (("_prepare_inputs", self._add_preparing), ("training_step", self._add_training)):
            setattr(trainer, name, _timed(getattr(trainer, name), add))
        trainer.on_rollouts = self._keep

    def _add_preparing(self, seconds: float) -> None:
        self._preparing += seconds

    def _add_training(self, seconds: float) -> None:
        self._training += seconds
        self._trained_until = time.perf_counter()

    def _keep(self, records: list[dict[str, Any]]) -> None:
        self._run.records.append([{"turns": record["turns"]} for record in records])

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter()
        self._preparing = self._training = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        assert self.trainer is not None
        metrics = {name: values[-1] for name, values in self.trainer._metrics["train"].items() if values}
        stages = {
            "sampling": metrics["rollouts/sampling_seconds"],
            "tools": metrics["rollouts/tool_seconds"],
            "gain pass": metrics.get("gain/seconds", 0.0),
            "loss and backward": self._training - self._preparing,
            "optimiser": now - self._trained_until,
        }
        stages["rest"] = now - self._start - sum(stages.values())
        self._run.step_seconds.append(now - self._start)
        for stage, seconds in stages.items():
            self._run.stages.setdefault(stage, []).append(seconds)


def _timed(method: Callable[..., Any], add: Callable[[float], None]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = method(*args, **kwargs)
        add(time.perf_counter() - start)
        return result

    return timed


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
    before = psutil.Process().memory_info().rss
    run = Run()
    times = StepTimes(run)
    trainer = read_recipe(words).build_trainer([times])
    times.watch(trainer)
    trainer.train()
    run.tensor_bytes = resident_peak() - before
    Path(file).write_text(json.dumps(asdict(run)))


if __name__ == "__main__":
    main(sys.argv[1:])
