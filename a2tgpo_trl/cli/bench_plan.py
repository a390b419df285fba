"""recipes -> what `a2tgpo plan` says of them beside what a few steps of them took on this machine.

The machine is measured right before and right after each run, since others may use it too. Turns are those that the
run had: a plan cannot know them. Everything else is planned as by `a2tgpo plan --gpu this`.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from ..plan import Plan, load_policy, make_plan, read_for
from ..plan.calibration import measure
from ..plan.hardware import mean_of
from ..plan.lengths import recorded
from ..plan.measured import Run
from ..plan.sharding import Sharding
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
FEW_ROWS = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--num_generations", "4"]
MIDDLE = [*FEW_ROWS, "--max_completion_length", "192"]
LORA = ["--use_peft", "true", "--lora_r", "8", "--lora_target_modules", "all-linear"]
PLAIN = ["--gradient_checkpointing", "false"]
MODEL = "MODEL"  # stands for the folder of the random-weight model
CASES = {
    "quickstart": [],
    "quickstart-plain": PLAIN,
    "quickstart-lora": LORA,
    "middle": [*MIDDLE, "--model_name_or_path", MODEL],
    "middle-plain": [*MIDDLE, *PLAIN, "--model_name_or_path", MODEL],
    "middle-lora": [*MIDDLE, *LORA, "--model_name_or_path", MODEL],
}


@dataclass(frozen=True)
class Comparison:
    """One case. The first step, which warms up, counts for memory alone."""

    name: str
    plan: Plan
    planned_bytes: float
    run: Run

    @property
    def memory_ratio(self) -> float:
        """Planned to measured."""
        return self.planned_bytes / self.run.tensor_bytes

    @property
    def measured_seconds(self) -> float:
        return statistics.median(self.run.step_seconds[1:])

    @property
    def time_ratio(self) -> float:
        return self.plan.step_seconds / self.measured_seconds

    def stage_seconds(self, stage: str) -> tuple[float, float]:
        """Planned and measured."""
        return self.plan.seconds.get(stage, 0.0), statistics.median(self.run.stages[stage][1:])


def compare(names: list[str], steps: int, folder: Path) -> Iterator[Comparison]:
    """Train each case for a few steps, in a process of its own, and plan it."""
    model = folder / "model"
    for name in names:
        if MODEL in CASES[name] and not model.exists():
            save_random_model(model)
        words = ["--config", "quickstart", *SHORT, "--max_steps", str(steps), "--output_dir", str(folder / name)]
        words += [str(model) if word == MODEL else word for word in CASES[name]]
        before = measure()
        run = train(words, folder / f"{name}.json")
        yield plan_run(name, words, run, mean_of([before, measure()]))


def train(words: list[str], file: Path) -> Run:
    """A real run of these words."""
    command = [sys.executable, "-m", "a2tgpo_trl.plan.measured", str(file), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"The run {' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return Run(**json.loads(file.read_text()))


def plan_run(name, words, run, machine) -> Comparison:
    """The plan of a run, with the turns that it had: on average for its seconds, the longest for its memory."""
    sharding = Sharding()
    recipe = read_for(words, sharding, accelerated=False)
    policy = load_policy(recipe, sharding, accelerated=False)
    prompt, longest, _ = prompt_tokens(recipe)
    records = [record for batch in run.records for record in batch]
    later = [record for batch in run.records[1:] for record in batch]
    sizes = {"prompt": prompt, "longest_prompt": longest, "probe": 16.0}
    plan = make_plan(recipe, policy, machine, sharding, recorded(later, len(run.records[0]), **sizes))
    longest_plan = make_plan(recipe, policy, machine, sharding, recorded(records, len(records), **sizes))
    return Comparison(name, plan, longest_plan.memory.peak, run)


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
