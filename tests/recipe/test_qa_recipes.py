"""The recipes of qa/: each is checked, planned and trained for a step offline, with a tiny policy of its kind.

The figures are the paper's (arXiv 2605.06200, Table 3 and appendix B).
"""

import json
import re
from itertools import product
from pathlib import Path

import pytest
import tiny
import yaml
from qa_files import PASSAGES, write_rows, write_sets
from transformers import Qwen2Config, Qwen3Config

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.cli.bench_policy import byte_level_tokenizer
from a2tgpo_trl.recipe.recipe import Recipe, read_recipe
from a2tgpo_trl.recipe.recipe_file import Layer, merge, read_layers, recipe_folder, shipped_recipes


FAMILIES = {"qwen3_4b": "qwen3", "qwen3_8b": "qwen3", "qwen2_5_7b": "qwen2_5"}
METHODS = ("as_written", "atpo", "dapo", "gigpo", "grpo", "gspo", "gtpo", "igpo")
QWEN3 = {"vocab_size": 151936, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
SHAPES = {
    "qwen3_4b": Qwen3Config(
        **QWEN3, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, tie_word_embeddings=True
    ),
    "qwen3_8b": Qwen3Config(
        **QWEN3, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, tie_word_embeddings=False
    ),
    "qwen2_5_7b": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ),
}
SMALL = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "initializer_range": 0.2, "max_position_embeddings": 32768},
}
HERE = {"bf16": False, "use_vllm": False, "vllm_enable_sleep_mode": False}  # for a machine without a GPU
STEP = {
    **HERE,
    **{"max_steps": 1, "num_generations": 2, "generation_batch_size": 4, "per_device_train_batch_size": 2},
    **{"gradient_accumulation_steps": 2, "max_completion_length": 24, "save_strategy": "no"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The seven sets, an index of passages, tiny policies and the shapes of the real ones, all in one folder."""
    folder = tmp_path_factory.mktemp("world")
    write_sets(folder / "sets")
    rows = [{"id": str(i), "title": text.partition(":")[0], "text": text} for i, text in enumerate(PASSAGES)]
    corpus = write_rows(folder / "corpus.jsonl", rows)
    assert cli(["serve-search", "--corpus", str(corpus), "--build"]) == 0
    for name, family in FAMILIES.items():
        shape = SHAPES[name]
        shape.save_pretrained(folder / "shapes" / name)
        template = tiny.chat_template(f"{family}.jinja")
        tokenizer = byte_level_tokenizer(tiny.CORPUS * 4, 384, tiny.SPECIAL, template)
        tokenizer.save_pretrained(folder / name)
        heads = {"head_dim": 8} if family == "qwen3" else {}
        tied = {"tie_word_embeddings": shape.tie_word_embeddings, "vocab_size": len(tokenizer)}
        tiny.build(type(shape)(**SMALL, **heads, **tied)).save_pretrained(folder / name)
    return folder


def offline(world: Path, model: str, *parts: str, **keys) -> list[str]:
    """The words of a recipe built on these of qa/, with questions, passages and policy from the folder."""
    search = {"url": None, "index": str(world / "corpus.jsonl.bm25")}
    given = {
        "model_name_or_path": str(world / model),
        "task_kwargs": {"folder": str(world / "sets"), "search": search},
        "output_dir": str(world / "runs" / "-".join((model, *parts))),
        "overwrite": True,
        "report_to": "none",
    }
    file = world / "offline.yaml"
    file.write_text(yaml.safe_dump({**given, **keys}))
    return [str(file), "--base", *(f"qa/{name}" for name in (model, *parts))]


def layers_of(*parts: str) -> list[Layer]:
    """The layers of the last of these recipes, built on the others."""
    shipped = shipped_recipes()
    *bases, top = (f"qa/{name}" for name in parts)
    return read_layers(shipped[top], bases or None)


# ---- all of them

WITHOUT_METHOD = [
    (model, *(part for part in parts if part)) for model, *parts in product(FAMILIES, ("", "single_hop"), ("", "lora"))
]
COMBINATIONS = [*WITHOUT_METHOD, *(("qwen2_5_7b", "single_hop", "lora", method) for method in METHODS)]


def test_each_recipe_of_the_folder_is_tested_here():
    named = {*FAMILIES, *METHODS, "single_hop", "lora"}
    assert {file.stem for file in (recipe_folder() / "qa").glob("*.yaml")} == named


def test_all_combinations_keep_the_batch_sizes_of_the_paper():
    assert len(COMBINATIONS) == 3 * 2 * 2 + 8
    for parts in COMBINATIONS:
        layers = layers_of(*parts)
        keys = merge(layers)
        devices = 1 if "lora" in parts else 8
        step = keys["per_device_train_batch_size"] * keys["gradient_accumulation_steps"] * devices
        # Eight prompts per step and 64 per batch, with 16 rollouts each.
        assert (step, keys["generation_batch_size"], keys["num_generations"]) == (8 * 16, 64 * 16, 16)
        assert keys["max_steps"] * step == 240 * keys["generation_batch_size"]
        assert keys["vllm_max_model_length"] == 2000 + keys["max_completion_length"] == 2000 + 6192
        assert keys["task_kwargs"]["prompts"] == FAMILIES[parts[0]]
        assert keys["task_kwargs"]["sets"] == ("single-hop" if "single_hop" in parts else "multi-hop")
        said_above = {key for layer in layers if layer.path.stem in parts[1:] for key in layer.keys}
        for layer in layers:  # no part overrides what another sets
            if layer.path.stem in parts[1:]:
                assert all(keys[key] == value for key, value in layer.keys.items() if key != "task_kwargs")
        assert {"model_name_or_path", "prompts"}.isdisjoint(said_above)


def test_method_recipes_set_only_method_keys():
    of_the_method = {
        *("credit", "beta", "epsilon", "epsilon_high", "resample_limit", "reward_funcs", "reward_weights"),
        *("state_likeness", "gain_weight", "gain_measure", "loss_type"),
    }
    for method in METHODS:
        *_, top = layers_of(method)
        assert top.keys.keys() <= of_the_method and top.path.stem == method


@pytest.mark.parametrize("name", [*FAMILIES, *METHODS, "single_hop", "lora"])
def test_recipe_headers_state_needs_command_memory_and_time(name):
    file = recipe_folder() / "qa" / f"{name}.yaml"
    header = re.split(r"\n(?=\w)", file.read_text())[0]
    for word in ("# Needs", f"# Run       a2tgpo train qa/{name}", "# Override"):
        assert word in header
    if {"model_name_or_path", "use_peft"} & yaml.safe_load(file.read_text()).keys():
        assert "# Memory" in header and "# Time" in header and "not measured on a GPU" in header


# Values from a method's paper, or from A2TGPO's for its baselines: ratio, clip range, KL, gain weight, loss.
VALUES = {
    "": ("turn", 3e-3, 4e-3, 0.0, 0.3, "dapo"),
    "as_written": ("turn", 3e-3, 4e-3, 0.0, 1.0, "grpo"),
    "atpo": ("turn", 3e-3, 4e-3, 0.0, 0.0, "grpo"),
    "dapo": ("token", 0.2, 0.28, 0.0, 0.0, "dapo"),
    "gigpo": ("token", 0.2, 0.2, 0.001, 0.0, "dapo"),
    "grpo": ("token", 0.2, 0.2, 0.001, 0.0, "dapo"),
    "gspo": ("sequence", 3e-4, 4e-4, 0.0, 0.0, "grpo"),
    "gtpo": ("token", 0.2, 0.2, 0.0, 0.0, "dapo"),
    "igpo": ("token", 0.2, 0.2, 0.001, 1.0, "dapo"),
}


def read(world: Path, *parts: str, **keys) -> Recipe:
    return read_recipe(["--config", *offline(world, *parts, **{**HERE, **keys})])


@pytest.mark.parametrize("method", VALUES)
def test_a_method_has_the_values_of_the_paper(method, world):
    args = read(world, *filter(None, ("qwen3_4b", method))).args
    found = (args.importance_sampling_level, args.epsilon, args.epsilon_high, args.beta)
    assert (*found, args.gain_weight, args.loss_type) == VALUES[method]
    assert (args.learning_rate, args.discount) == (1e-6, {"gigpo": 0.95, "gtpo": 0.9}.get(method, 1.0))
    assert args.max_tool_calling_iterations == 6 and args.lr_scheduler_type == "constant"
    assert args.clip_adaptation == (0.3 if method in ("", "as_written") else 0.0)
    assert args.gain_measure == ("probability" if method == "as_written" else "logprob")
    assert args.state_likeness == (0.9 if method == "gigpo" else 1.0)


def test_dapo_resamples_twice_and_penalises_the_last_2000_tokens(world):
    recipe = read(world, "qwen3_4b", "dapo")
    # In addition to the first round; and 4,192 tokens are free, 5,192 cost a half.
    assert recipe.args.resample_limit == 3 - 1 and recipe.args.reward_weights == [0.0, 1.0, 0.0, 1.0]
    price = recipe.task.reward_funcs[-1]
    assert price(completion_ids=[[0] * 4192, [0] * 5192, [0] * 6192]) == [0.0, -0.5, -1.0]


def test_search_returns_three_passages_and_the_url_is_set_once(world):
    (tool,) = read(world, "qwen3_4b").task.tools
    assert len(re.findall(r"^\[\d\]", tool("builder of Dyle Bridge"), re.MULTILINE)) == 3
    assert merge(layers_of("lora"))["task_kwargs"]["search"] == {"url": "http://127.0.0.1:8000", "top_k": 3}


# ---- checked, planned, trained

EVERY_DAY = [("qwen3_4b",), ("qwen3_8b", "gigpo"), ("qwen2_5_7b", "single_hop", "lora")]
NOW_AND_THEN = [
    *(("qwen3_4b", method) for method in METHODS if method != "gigpo"),
    *(("qwen3_8b", "single_hop"), ("qwen3_8b", "lora"), ("qwen2_5_7b",)),
]
CHOSEN = [*EVERY_DAY, *(pytest.param(combined, marks=pytest.mark.slow) for combined in NOW_AND_THEN)]


@pytest.mark.parametrize("parts", CHOSEN, ids="-".join)
def test_recipe_combination_passes_check(parts, world, capsys):
    assert cli(["check", *offline(world, *parts, **HERE)]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "0 failed" in said and "sampler and trainer differ by at most" in said


@pytest.mark.parametrize("parts", CHOSEN, ids="-".join)
def test_recipe_combination_fits_in_the_plan(parts, world, capsys):
    devices = ["--config_file", "single_gpu" if "lora" in parts else "zero3"]
    assert cli(["plan", *offline(world, *parts), *devices, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and "completions of 6192" in found["assumptions"][0]


@pytest.mark.parametrize("parts", CHOSEN, ids="-".join)
def test_recipe_combination_trains_a_step(parts, world):
    assert read(world, *parts, **STEP).build_trainer().train().global_step == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, "lora"])
def test_header_memory_matches_the_plan_for_the_real_model_size(name, world, capsys):
    header = (recipe_folder() / "qa" / f"{name}.yaml").read_text()
    stated = re.search(r"# Memory +(\d+) of (\d+) GiB", header)
    command = re.search(r"#  +a2tgpo plan (.*)\n", header)[1].split()
    model = "qwen3_8b" if name == "lora" else name
    assert command[:3] == ["qa/lora", "--base", "qa/qwen3_8b"] if name == "lora" else command[0] == f"qa/{name}"
    options = command[command.index("--gpu") :]
    words = offline(world, *dict.fromkeys((model, name)), model_name_or_path=str(world / "shapes" / model))
    assert cli(["plan", *words, *options, "--json"]) == 0
    computed = re.search(r"It fits: ([\d.]+) of ([\d.]+) GiB", json.loads(capsys.readouterr().out)["verdict"])
    for number, rounded in zip(computed.groups(), stated.groups(), strict=True):
        assert abs(float(number) - int(rounded)) <= 0.5  # 74.5 may be stated as 75
