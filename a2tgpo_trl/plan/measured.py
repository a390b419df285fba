"""words of a recipe -> two batches of rollouts and their steps, trained here in a separate process: `Measured`.

    python -m a2tgpo_trl.plan.measured FILE --config RECIPE [--key value ...]

is that process, which writes what it measured to FILE. The first batch warms up, and the second is timed.

Peak memory is that of tensors. On a GPU PyTorch reports it, without what vLLM takes outside PyTorch. On a CPU it is
peak resident memory minus what was resident after the imports and one step of a model of a few hundred weights. There
the C library keeps much of what is freed, which makes steps faster; under `GIVE_BACK` it does not.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from os import environ
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig

from ..launch.processes import choose_start, count_accelerators
from ..ranks import Ranks
from ..recipe.program import run_recipe
from ..recipe.recipe import Recipe
from ..rollout.records import Record
from .clock import LOSS, StepClock


# Environment variables under which glibc maps tensors one by one.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
TRAINING_ALONE = {
    **{"eval_rows": "0", "eval_strategy": "no", "load_best_model_at_end": "false", "save_strategy": "no"},
    **{"report_to": "none", "log_completions": "false", "logging_strategy": "steps", "logging_steps": "1"},
    **{"overwrite": "true", "disable_tqdm": "true"},
}
METRICS = {
    "sampling": "rollouts/sampling_seconds",
    "tools": "rollouts/tool_seconds",
    "gain pass": "gain/seconds",
}
REST = "the rest"
LAST_WORDS = 2000  # characters of the output of a run that failed


@dataclass(frozen=True)
class Measured:
    """What two batches took. Seconds are those of an optimiser step, by stage."""

    seconds: dict[str, float]
    peak_bytes: int  # of the process with the highest peak
    longest_completion: int  # including tokens of tools

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())


def measure(
    recipe: Recipe,
    words: Sequence[str],
    processes: int = 1,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Measured:
    """Run two batches of the recipe that was read from these words, in this many processes on this machine."""
    accelerators = count_accelerators()
    if processes > accelerators > 0:
        raise ValueError(
            f"--gpu this: {processes} processes cannot run on this machine, which has {accelerators} GPU(s). Give "
            f"--gpus {accelerators}, or plan for a kind of GPU (--gpu h100)."
        )
    start = choose_start(config_file, processes, accelerators)
    settings = {**TRAINING_ALONE, "max_steps": str(2 * steps_of_batch(recipe))}
    with TemporaryDirectory() as folder:
        file = Path(folder, "measured.json")
        options = [word for key, value in settings.items() for word in (f"--{key}", value)]
        command = [sys.executable, *start.words, "-m", "a2tgpo_trl.plan.measured", str(file), *words, *options]
        command += ["--output_dir", str(Path(folder, "run"))]
        variables = {**environ, **start.variables, **(environment or {})}
        done = subprocess.run(command, capture_output=True, text=True, env=variables)
        if done.returncode != 0 or not file.exists():
            raise ValueError(
                f"--gpu this: two batches of the recipe did not run here:\n{done.stderr[-LAST_WORDS:].strip()}\n"
                "Change the recipe until they do, or plan for a kind of GPU (--gpu h100)."
            )
        return Measured(**json.loads(file.read_text()))


def steps_of_batch(recipe: Recipe) -> int:
    """Return the optimiser steps that one batch of rollouts serves; 1 if a step takes several batches."""
    args = recipe.args
    return max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)


def batches_of_step(args: GRPOConfig) -> int:
    """Return the batches of rollouts that an optimiser step takes; 1 if a batch serves several steps."""
    return max(1, args.gradient_accumulation_steps // (args.steps_per_generation * args.num_iterations))


def count_steps(recipe: Recipe, processes: int) -> int:
    """Return max_steps, or as many as the epochs need: each prompt is rolled out `num_generations` times, and each
    batch of rollouts serves `num_iterations` updates."""
    args = recipe.args
    if args.max_steps > 0:
        return args.max_steps
    rows: Any = recipe.task.train_dataset
    try:
        number = len(rows)
    except TypeError:
        raise ValueError(f"{recipe.where}a streamed data set has no length: set max_steps.") from None
    rollouts = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    prompts = rollouts / (args.num_generations * args.num_iterations)
    return max(1, round(args.num_train_epochs * number / prompts))


# ---- the process that runs it


def run_batches(recipe: Recipe) -> Measured:
    """Train `max_steps`, and measure the second half of them."""
    load_libraries()
    before = psutil.Process().memory_info().rss
    trainer = recipe.build_trainer()
    clock = StepClock(trainer)
    lengths = [0]
    trainer.on_rollouts = lambda records: lengths.extend(map(completion_tokens, records))
    trainer.train()
    peak, longest = Ranks(trainer.accelerator).max_each([_peak_bytes(before), max(lengths)])
    return Measured(seconds_by_stage(recipe, clock, trainer.state.log_history), peak, longest)


def completion_tokens(record: Record) -> int:
    """Return the number of sampled tokens and those of tools: a row of the batch holds both."""
    return sum(turn["tokens_out"] + turn["tokens_in"] for turn in record["turns"])


def seconds_by_stage(recipe: Recipe, clock: StepClock, logs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return a step's mean seconds over the second half. Metrics are logged once a step, averaged over its batches."""
    half, batches = len(clock.seconds) // 2, batches_of_step(recipe.args)
    found = {
        stage: sum(log.get(name, 0.0) for log in logs if log["step"] > half) * batches / half
        for stage, name in METRICS.items()
    }
    found[LOSS] = sum(clock.parts[LOSS][half:]) / half
    found[REST] = max(sum(clock.seconds[half:]) / half - sum(found.values()), 0.0)
    return found


def _peak_bytes(before: int) -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024) - before  # Linux counts in kilobytes


def load_libraries() -> None:
    """Import the trainer and do one step of a tiny model: what is loaded at first use is not the run's."""
    import_module("..trainer", __package__)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=1, vocab_size=16, max_position_embeddings=64))
        ids = torch.ones(1, 4, dtype=torch.long)
        model(input_ids=ids, attention_mask=ids, labels=ids).loss.backward()
        torch.optim.AdamW(model.parameters(), fused=True).step()
        model.generate(ids, attention_mask=ids, max_new_tokens=2, do_sample=True, pad_token_id=0)


def main(words: Sequence[str]) -> int:
    """Measure, and write the result to a file."""
    file, *words = words

    def write(recipe: Recipe) -> None:
        found = run_batches(recipe)
        if recipe.args.process_index == 0:
            Path(file).write_text(json.dumps(asdict(found)))

    return run_recipe(write, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
