"""A plan compared with what two batches of real training took, on this machine."""

import json
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from a2tgpo_trl.cli import main
from a2tgpo_trl.plan.hardware import this_machine
from a2tgpo_trl.plan.measured import GIVE_BACK, Measured, measure
from a2tgpo_trl.plan.planning import Planner, read_for
from a2tgpo_trl.plan.sharding import Sharding
from a2tgpo_trl.tasks.atlas import POLICY


ONE_BATCH = ["--config", "quickstart", "--gradient_accumulation_steps", "1"]
QUICKSTART = [*ONE_BATCH, "--per_device_train_batch_size", "32"]
MIDDLE = [*ONE_BATCH, "--per_device_train_batch_size", "4", "--num_generations", "4", "--max_completion_length", "96"]


@dataclass(frozen=True)
class Comparison:
    planned_bytes: float
    measured: Measured


def save_middle_model(folder) -> None:
    """Save 42 million random weights, with the shipped policy's tokenizer and words that mean nothing."""
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


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory) -> dict[str, Comparison]:
    model = tmp_path_factory.mktemp("plan") / "model"
    save_middle_model(model)
    middle = [*MIDDLE, "--model_name_or_path", str(model)]
    # Not with LoRA on the shipped policy: its peak memory differs from run to run by half.
    cases = {
        "quickstart": QUICKSTART,
        "middle": middle,
        "middle-plain": [*middle, "--gradient_checkpointing", "false"],
    }
    device, sharding = this_machine(1), Sharding()
    found = {}
    for name, words in cases.items():
        recipe = read_for(words, sharding, device)
        measured = measure(recipe, words, environment=GIVE_BACK)
        planned = Planner(recipe, device, sharding).training_peak(measured.longest_completion)
        found[name] = Comparison(planned, measured)
    return found


@pytest.mark.slow
@pytest.mark.alone
def test_planned_memory_is_within_a_quarter_of_measured_tensors(comparisons):
    ratios = {name: found.planned_bytes / found.measured.peak_bytes for name, found in comparisons.items()}
    assert all(0.75 <= ratio <= 1.25 for ratio in ratios.values()), ratios


@pytest.mark.slow
@pytest.mark.alone
def test_checkpointing_saves_memory_in_plan_and_measurement(comparisons):
    plain, checkpointed = comparisons["middle-plain"], comparisons["middle"]
    assert checkpointed.planned_bytes < plain.planned_bytes
    assert checkpointed.measured.peak_bytes < plain.measured.peak_bytes


SMALL = ["--per_device_train_batch_size", "4", "--num_generations", "4", "--gradient_accumulation_steps", "1"]


@pytest.mark.slow
def test_plan_with_gpu_this_measures_two_batches(capsys):
    assert main(["plan", "quickstart", "--gpu", "this", "--json", *SMALL, "--max_completion_length", "32"]) == 0
    found = json.loads(capsys.readouterr().out)["measured"]
    assert list(found["seconds"]) == ["sampling", "tools", "gain pass", "loss", "the rest"]
    assert all(found["seconds"][stage] > 0 for stage in ("sampling", "gain pass", "loss"))
    assert found["step_seconds"] == pytest.approx(sum(found["seconds"].values()))
    assert found["hours"] == pytest.approx(40 * found["step_seconds"] / 3600)
    assert 0 < found["longest_completion"] <= 32 and found["peak"] > 0 and found["planned_peak"] > 0


@pytest.mark.slow
def test_plan_reports_the_error_of_a_recipe_that_does_not_run(tmp_path, capsys):
    for part in (AutoConfig, AutoTokenizer):
        part.from_pretrained(str(POLICY)).save_pretrained(tmp_path)  # but no weights
    assert main(["plan", "quickstart", "--gpu", "this", "--model_name_or_path", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "two batches of the recipe did not run here" in message and str(tmp_path) in message
