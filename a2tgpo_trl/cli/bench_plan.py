"""recipes -> what `a2tgpo plan` says of them beside what a few steps of them took on this machine.

The machine is measured right before and right after each run, since others may use it too. Turns are those that the
run had: a plan cannot know them. Everything else is planned as by `a2tgpo plan --gpu this`.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from ..information_gain.probes import ProbeMaker
from ..plan import Plan, load_policy, make_plan, read_for
from ..plan.calibration import measure
from ..plan.hardware import Machine, mean_of
from ..plan.lengths import recorded
from ..plan.measured import GIVE_BACK, Run
from ..plan.sharding import Sharding
from ..preflight.loading import load_tokenizer
from ..recipe.recipe import Recipe
from ..tasks.atlas import POLICY
from .plan import prompt_tokens


SHORT = [
    "--eval_rows",
    "0",
    "--save_strategy",
    "no",
    "--report_to",
    "none",
    "--overwrite",
    "true",
    "--disable_tqdm",
    "true",
]
ONE_BATCH = ["--gradient_accumulation_steps", "1"]
QUICKSTART = [*ONE_BATCH, "--per_device_train_batch_size", "32"]
MIDDLE = [*ONE_BATCH, "--per_device_train_batch_size", "4", "--num_generations", "4", "--max_completion_length", "96"]
LORA = ["--use_peft", "true", "--lora_r", "8", "--lora_target_modules", "all-linear"]
PLAIN = ["--gradient_checkpointing", "false"]
MODEL = "MODEL"  # stands for the folder of the random-weight model
CASES = {
    "quickstart": QUICKSTART,
    "quickstart-plain": [*QUICKSTART, *PLAIN],
    "quickstart-lora": [*QUICKSTART, *LORA],
    "middle": [*MIDDLE, "--model_name_or_path", MODEL],
    "middle-plain": [*MIDDLE, *PLAIN, "--model_name_or_path", MODEL],
    "middle-lora": [*MIDDLE, *LORA, "--model_name_or_path", MODEL],
}


WAITED_FOR = "tools"  # the stage in which nothing is computed


@dataclass(frozen=True)
class Comparison:
    """One case: a plan for each of its steps but the first, which warms up, and the run itself."""

    name: str
    planned_bytes: float
    measured_bytes: float
    plans: list[Plan]
    run: Run

    @property
    def memory_ratio(self) -> float:
        """Planned to measured."""
        return self.planned_bytes / self.measured_bytes

    @property
    def planned_seconds(self) -> list[float]:
        """Of each step, without waiting."""
        return [plan.step_seconds - plan.seconds.get(WAITED_FOR, 0.0) for plan in self.plans]

    @property
    def time_ratio(self) -> float:
        """Median of the ratios of the steps."""
        pairs = zip(self.planned_seconds, self.run.step_seconds[1:], strict=True)
        return statistics.median(planned / measured for planned, measured in pairs)

    def stage(self, stage: str) -> tuple[float, float]:
        """Median seconds, planned and measured."""
        planned = [plan.seconds.get(stage, 0.0) for plan in self.plans]
        return statistics.median(planned), statistics.median(self.run.stages[stage][1:])


def compare(names: Sequence[str], steps: int, folder: Path) -> Iterator[Comparison]:
    """Train each case for a few steps, in a process of its own, and plan it.

    Twice: memory is measured while the C library gives back what is freed, and time as it comes.
    """
    model = folder / "model"
    for name in names:
        if MODEL in CASES[name] and not model.exists():
            save_random_model(model)
        words = ["--config", "quickstart", *SHORT, "--max_steps", str(steps), "--output_dir", str(folder / name)]
        words += [str(model) if word == MODEL else word for word in CASES[name]]
        of_memory = train(words, folder / f"{name}.json", GIVE_BACK)
        before = measure()
        run = train(words, folder / f"{name}.json")
        machine = mean_of([before, measure()])
        planner = Planner(words, machine)
        yield Comparison(
            name,
            planner.plan(of_memory.records).memory.peak,
            of_memory.tensor_bytes,
            [planner.plan([records]) for records in run.records[1:]],
            run,
        )


def train(words: list[str], file: Path, environment: Mapping[str, str] | None = None) -> Run:
    """A real run of these words."""
    command = [sys.executable, "-m", "a2tgpo_trl.plan.measured", str(file), *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        raise ValueError(f"The run {' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return Run(**json.loads(file.read_text()))


class Planner:
    """Plans one recipe on this machine, for the turns that its rollouts had."""

    def __init__(self, words: Sequence[str], machine: Machine):
        self._machine, self._sharding = machine, Sharding()
        self._recipe = read_for(words, self._sharding, accelerated=False)
        self._policy = load_policy(self._recipe, self._sharding, accelerated=False)
        self._prompt, self._longest, _ = prompt_tokens(self._recipe)

    def plan(self, batches: Sequence[Sequence[dict]]) -> Plan:
        """`batches`: of records. Memory is that of the longest rollout of all, so they count as one batch."""
        records = [record for batch in batches for record in batch]
        lengths = recorded(
            records, len(records), prompt=self._prompt, longest_prompt=self._longest, probe=probe_tokens(self._recipe)
        )
        return make_plan(self._recipe, self._policy, self._machine, self._sharding, lengths)


def probe_tokens(recipe: Recipe) -> float:
    """Tokens of a probe, on average over the first answers of the data."""
    maker = ProbeMaker(load_tokenizer(recipe), recipe.args.probe_template)
    rows: Any = recipe.task.train_dataset
    answers = rows[:100][recipe.args.answer_column]
    return statistics.mean(len(maker.make_all([answer], "first")[0].ids) for answer in answers)


def save_random_model(folder: Path) -> None:
    """42 million random weights, with the tokenizer of the shipped policy and words that mean nothing."""
    tokenizer = AutoTokenizer.from_pretrained(str(POLICY))
    vocabulary = 8192
    tokenizer.add_tokens([f"word{number}" for number in range(vocabulary - len(tokenizer))])
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
