"""`a2tgpo plan`: memory compared with arithmetic by hand; for comparisons with real runs see test_plan_measured.py."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig
from qa_files import write_sets
from recipe_files import marks
from tiny import make_tokenizer
from transformers import Qwen3Config

from a2tgpo_trl.cli import main
from a2tgpo_trl.plan.hardware import named
from a2tgpo_trl.plan.measured import METRICS, Measured, completion_tokens, seconds_by_stage, steps_of_batch
from a2tgpo_trl.plan.memory import gain_rows, plan_memory, states
from a2tgpo_trl.plan.policy import Head, Parameters, Policy, Training
from a2tgpo_trl.plan.report import CURES
from a2tgpo_trl.plan.setting import Setting
from a2tgpo_trl.plan.sharding import Sharding, of_accelerate
from a2tgpo_trl.plan.tracing import MemoryTrace
from a2tgpo_trl.recipe.recipe_file import recipe_folder


HIDDEN, LAYERS, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 32, 2, 64, 4, 2, 8, 100
# query and output, key and value, and the three of the MLP
LAYER_MATMULS = 2 * HIDDEN * HEADS * HEAD_DIM + 2 * HIDDEN * KV_HEADS * HEAD_DIM + 3 * HIDDEN * INNER


def config(**settings) -> Qwen3Config:
    return Qwen3Config(
        **{
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "intermediate_size": INNER,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": True,
            **settings,
        }
    )


def adam(parameters):
    return torch.optim.AdamW(parameters, fused=True)


def policy(**training) -> Policy:
    return Policy(config(), Training(**training), adam)


def setting(**changes) -> Setting:
    plain = {
        "rows": 2,
        "micro_batches": 2,
        "generated": 4,
        "evaluated": 0,
        "sampler": "transformers",
        "gain_token_budget": 16384,
        "reference": "none",
        "max_completion_length": 64,
        "quantized_bits": None,
        "compute_bytes": 4,
        "stored_bytes": 4,
    }
    return Setting(**{**plain, **changes})


ROW = 76  # a prompt of 12 and a completion of 64


# ---- tracing


def test_peak_memory_is_what_is_held_at_once():
    def run():
        a = torch.ones(1000)  # 4,000 bytes
        b = a + 1  # 8,000
        del a
        c = b * 2  # 8,000
        b.add_(1)  # in place: no memory
        return c.view(10, 100)

    with MemoryTrace() as trace:
        kept = run()
    assert (trace.peak, trace.held) == (8000, 4000)
    assert kept.shape == (10, 100)


# ---- the policy


def test_weights_are_counted_once_where_they_are_tied():
    norms = LAYERS * (2 * HIDDEN + 2 * HEAD_DIM) + HIDDEN
    expected = VOCABULARY * HIDDEN + LAYERS * LAYER_MATMULS + norms
    assert policy().parameters.all == policy().parameters.trained == expected


def test_adam_keeps_two_numbers_a_weight():
    found = policy()
    norms = LAYERS * 4 + 1
    tensors = 1 + LAYERS * 7 + norms
    assert found.update().kept == 8 * found.parameters.trained + 4 * tensors  # and its step counts


def test_gradient_checkpointing_needs_less_memory():
    plain, checkpointed = policy().learn(4, 64, True), policy(checkpointing=True).learn(4, 64, True)
    assert checkpointed < 0.7 * plain


def test_the_cache_holds_keys_and_values_of_each_layer():
    rows, length = 2, 50
    assert policy().read(rows, length).kept == 4 * rows * length * LAYERS * 2 * KV_HEADS * HEAD_DIM


def test_fused_head_memory_worked_out_by_hand():
    # 8 tokens of 32 numbers, 100 words: hidden states of 8 * 32 and a tile of 8 * 100, in 2 bytes
    on_gpu = Head(vocabulary=100, hidden=32, trained=True, copies=0)
    assert on_gpu.scoring(8, itemsize=2) == 2 * (8 * 32 + 8 * 100)
    # its gradients, of hidden states and of 100 * 32 weights, in float32 and then in 2 bytes
    assert on_gpu.learning(8, itemsize=2) == on_gpu.scoring(8, 2) + (8 * 32 + 100 * 32) * (4 + 2)
    assert Head(100, 32, False, 0).learning(8, 2) == on_gpu.scoring(8, 2) + 8 * 32 * (4 + 2)
    assert Head(100, 32, True, copies=6).scoring(8, 4) == 4 * (8 * 32 + 7 * 8 * 100)
    # As many tokens and words at a time as TRL takes.
    assert on_gpu.scoring(10000, 2) - 2 * 10000 * 32 == 2 * 4096 * 100


def test_an_adapter_is_all_that_is_trained():
    found = policy(adapter=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")).parameters
    assert found.trained == LAYERS * 4 * (HIDDEN + HEADS * HEAD_DIM)
    assert found.quantizable == LAYERS * LAYER_MATMULS  # the head, tied to the embedding, is not


def test_adapter_dropout_takes_additional_memory():
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1)
    dropping, off = (policy(adapter=adapter, disable_dropout=off).learn(4, 64, True) for off in (False, True))
    assert dropping > 1.1 * off


# ---- memory


@pytest.mark.parametrize(
    "kind, devices, stored, expected, gradients",
    [
        # Adam in float32: 4 + 8 + 4 bytes per weight
        ("none", 1, 4, {"weights": 4000, "optimiser": 8000}, 4000),
        ("ddp", 8, 4, {"weights": 4000, "optimiser": 8000}, 4000),
        # bfloat16 weights and gradients; two moments and a float32 copy, over 8
        ("zero2", 8, 2, {"weights": 2000, "optimiser": 1500}, 250),
        ("zero3", 8, 2, {"weights": 250, "optimiser": 1500, "gathered weights": 2000}, 250),
        # float32 split over 8; two blocks of 100 weights gathered in bfloat16
        ("fsdp2", 8, 4, {"weights": 500, "optimiser": 1000, "gathered weights": 400}, 500),
    ],
)
def test_states_of_a_thousand_weights_by_hand(kind, devices, stored, expected, gradients):
    numbers = Parameters(trained=1000, frozen=0, largest_block=100)
    how = setting(stored_bytes=stored, compute_bytes=2)
    assert states(numbers, how, Sharding(kind, devices), optimizer_bytes_per_weight=8) == (expected, gradients)


def test_states_of_an_adapter_on_four_bits_by_hand():
    # 900 weights of 4 bits and 1/64 float32, 60 frozen and 40 trained of 2 bytes; Adam on 40
    numbers = Parameters(trained=40, frozen=960, largest_block=100, quantizable=900)
    parts, gradients = states(numbers, setting(quantized_bits=4, stored_bytes=2), Sharding(), 4)
    assert parts == {"weights": 900 * (0.5 + 4 / 64) + 100 * 2, "optimiser": 160}
    assert gradients == 80


def test_a_reference_model_is_another_copy():
    numbers = Parameters(trained=1000, frozen=0, largest_block=100)
    parts, _ = states(numbers, setting(reference="model"), Sharding(), 8)
    assert parts["reference model"] == parts["weights"] == 4000


H100 = named("h100")


def peak(kind: str, devices: int) -> float:
    found = policy(dtype=torch.bfloat16, on_gpu=True)
    how = setting(stored_bytes=2, compute_bytes=2)
    return plan_memory(found, how, Sharding(kind, devices), H100, ROW).peak


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_more_gpus_never_take_more_memory_each(kind):
    peaks = [peak(kind, devices) for devices in (1, 2, 8, 64)]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > peaks[-1]


def test_longer_rollouts_take_more_memory():
    longer, usual = (plan_memory(policy(), setting(), Sharding(), H100, row).peak for row in (2 * ROW, ROW))
    assert longer > usual


@pytest.mark.parametrize(("kind", "each"), [("ddp", 800.0), ("zero2", 100.0), ("fsdp2", 100.0)])
def test_work_of_the_optimiser_is_divided_only_if_its_state_is(kind, each, monkeypatch):
    found = policy()
    monkeypatch.setattr(found, "update", lambda: SimpleNamespace(kept=1000, peak=1800))
    stages = plan_memory(found, setting(), Sharding(kind, 8), H100, ROW).stages
    assert stages["optimiser"]["optimiser's work"] == each


def test_evaluation_memory_is_the_cache_and_work_of_its_rows():
    def stages(**changes) -> dict[str, dict[str, float]]:
        how = setting(reference="model", **changes)
        return plan_memory(policy(), how, Sharding(), H100, ROW).stages

    found = stages(evaluated=40)
    assert found["evaluation"]["KV cache of an evaluation"] == 10 * found["sampling"]["KV cache"]  # 40 rows for 4
    assert set(found["evaluation"]) == {"KV cache of an evaluation", "work of an evaluation"}
    assert "evaluation" not in stages()
    memory = plan_memory(policy(), setting(evaluated=4000), Sharding(), H100, ROW)
    assert memory.peak_stage == "evaluation" and set(memory.peak_parts) - set(memory.stays) <= set(CURES)
    colocated = stages(evaluated=40, sampler="colocate", vllm_share=0.3)
    assert colocated["evaluation"] == {}  # in vLLM's share, which is already counted


def test_gain_rows_fill_the_token_budget():
    assert gain_rows(setting(generated=64), 900) == 18  # 16,200 of 16,384 tokens
    assert gain_rows(setting(generated=4), 900) == 4
    assert gain_rows(setting(generated=64, gain_token_budget=1), 900) == 1


def test_sampling_in_parts_needs_the_memory_of_one_part():
    many, parts, one_part = (
        plan_memory(policy(), setting(**sizes), Sharding(), H100, ROW).peak
        for sizes in ({"generated": 4096}, {"generated": 4096, "sampled_at_once": 512}, {"generated": 512})
    )
    assert many > parts == one_part


def test_a_share_of_vllm_that_does_not_hold_its_weights_is_refused():
    # 2 bytes per weight, and 2 per number of a rollout's cache
    found = policy()
    size = 2 * found.parameters.all + 2 * ROW * LAYERS * 2 * KV_HEADS * HEAD_DIM / 0.9
    for share, fits in ((1.01 * size, True), (0.99 * size, False)):
        how = setting(sampler="colocate", vllm_share=share / H100.memory_bytes)
        if fits:
            assert plan_memory(found, how, Sharding(), H100, ROW).stays["vLLM"] == pytest.approx(share)
        else:
            with pytest.raises(ValueError, match="Raise vllm_gpu_memory_utilization"):
                plan_memory(found, how, Sharding(), H100, ROW)


@pytest.mark.parametrize("name, size", [("h100", 80), ("H100-80GB", 80), ("a100-40gb", 40), ("48gb", 48)])
def test_a_gpu_is_named_by_its_kind_or_its_memory(name, size):
    assert named(name).memory_bytes == size * 1e9


# ---- what is measured


def settings_of_batches(generation: int, accumulation: int) -> SimpleNamespace:
    sizes = {"steps_per_generation": generation, "num_iterations": 1, "gradient_accumulation_steps": accumulation}
    return SimpleNamespace(args=SimpleNamespace(**sizes))


@pytest.mark.parametrize("generation, accumulation, steps", [(4, 4, 1), (64, 8, 8), (4, 16, 1)])
def test_a_batch_of_rollouts_serves_one_step_or_several(generation, accumulation, steps):
    assert steps_of_batch(settings_of_batches(generation, accumulation)) == steps


def test_completion_length_includes_tool_results():
    turns = [{"tokens_out": 10, "tokens_in": 20}, {"tokens_out": 5, "tokens_in": 0}]
    assert completion_tokens({"turns": turns}) == 35


def test_seconds_of_a_step_are_those_of_the_second_half():
    clock = SimpleNamespace(seconds=[90.0, 90.0, 7.0, 5.0], parts={"loss": [50.0, 50.0, 1.0, 2.0]})
    logs = [{"step": 1, "gain/seconds": 80.0}, {"step": 3, "gain/seconds": 2.0, METRICS["sampling"]: 4.0}, {"step": 4}]
    found = seconds_by_stage(settings_of_batches(16, 8), clock, logs)
    assert found == {"sampling": 2.0, "tools": 0.0, "gain pass": 1.0, "loss": 1.5, "the rest": 1.5}
    assert Measured(found, 0, 0).step_seconds == 6.0
    # Two batches per step: the log has their average.
    assert seconds_by_stage(settings_of_batches(4, 8), clock, logs)["gain pass"] == 2.0


# ---- the command


def folder_of(tmp_path, **settings) -> str:
    path = tmp_path / "model"
    config(architectures=["Qwen3ForCausalLM"], **settings).save_pretrained(path)
    return str(path)


def plan(capsys, *words: str) -> tuple[int, dict]:
    code = main(["plan", "quickstart", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def test_a_folder_with_a_config_alone_is_planned(tmp_path, capsys):
    words = ["--model_name_or_path", folder_of(tmp_path), "--bf16", "true"]
    code, found = plan(capsys, *words, "--gpus", "8", "--sharding", "zero3")
    assert code == 0 and found["fits"] and found["devices"] == 8
    assert any("prompts of 300 tokens (assumed, not counted" in line for line in found["assumptions"])


def test_plan_that_does_not_fit_says_what_to_change(tmp_path, capsys):
    model = folder_of(tmp_path, hidden_size=8192, intermediate_size=28672, num_hidden_layers=2, vocab_size=128000)
    words = ["--model_name_or_path", model, "--bf16", "true", "--gpu", "l4", "--eval_rows", "0"]
    code, found = plan(capsys, *words)
    assert code == 1 and not found["fits"]
    assert "optimiser" in found["verdict"] and "--sharding zero2" in found["verdict"]


SHIPPED = sorted(file.stem for file in recipe_folder().glob("*.yaml"))


@pytest.mark.parametrize(
    "recipe",
    [name if name == "quickstart" else pytest.param(name, marks=[pytest.mark.slow, *marks(name)]) for name in SHIPPED],
)
def test_every_shipped_recipe_can_be_planned(recipe, tmp_path, capsys):
    words = ["--model_name_or_path", folder_of(tmp_path)]
    if recipe == "gtpo_math":  # its problems are on the hub
        for split in ("train", "test"):
            (tmp_path / f"{split}.jsonl").write_text('{"question": "3 * 24?", "answer": "#### 72"}\n')
        words += ["--task_kwargs", json.dumps({"path": str(tmp_path)})]
    if recipe == "eval_qa":
        words += ["--task_kwargs", json.dumps({"folder": str(write_sets(tmp_path)), "train": []})]
    assert main(["plan", recipe, "--json", *words]) == 0
    rules = yaml.safe_load((recipe_folder() / f"{recipe}.yaml").read_text())
    found = json.loads(capsys.readouterr().out)
    assert f"completions of {rules.get('max_completion_length', 512)}" in " ".join(found["assumptions"])
    assert ("nothing to train on" in found["assumptions"][0]) == (recipe == "eval_qa")


def test_the_text_says_whether_it_fits_and_how_it_is_known(capsys):
    assert main(["plan", "quickstart", "--prompt_tokens", "40"]) == 0
    output = capsys.readouterr().out
    assert "It fits:" in output and "1 x h100, none" in output and "prompts of 40 tokens (as given)" in output
    assert "Seconds are not computed" in output


def test_the_name_of_a_folder_is_shown_as_it_is(tmp_path, capsys):
    model = folder_of(tmp_path / "run[lr=1e-4]")
    assert main(["plan", "quickstart", "--prompt_tokens", "40", "--model_name_or_path", model]) == 0
    assert f"{model} (" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--gpu", "h10"], "Did you mean 'h100'?"),
        (["--sharding", "zero4", "--gpus", "2"], "Did you mean 'zero"),
        (["--gpus", "2", "--sharding", "none"], "is for one device"),
        (["--model_name_or_path", "/nowhere/model"], "there is no folder /nowhere/model"),
        (["--config_file", "nowhere.yaml"], "no configuration of Accelerate 'nowhere.yaml'"),
        (["--config_file", "zero3", "--sharding", "zero3"], "say the same thing twice"),
        (["--gpu", "this", "--gpus", "2", "--sharding", "zero3"], "--config_file zero3 instead of --sharding"),
        (["--gpu", "this", "--num_generations", "7"], "must be divisible"),
        (["--lerning_rate", "1"], "Did you mean 'learning_rate'?"),
    ],
)
def test_invalid_plan_options_are_an_error(words, message, capsys):
    assert main(["plan", "quickstart", *words]) == 2
    assert message in capsys.readouterr().err


ACCELERATE = {
    "zero3": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3}},
    "zero2": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}},
    "fsdp2": {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}},
    "ddp": {"distributed_type": "MULTI_GPU"},
}


@pytest.mark.parametrize("kind", ACCELERATE)
def test_accelerates_configuration_says_how_it_is_split(kind, tmp_path):
    file = tmp_path / "config.yaml"
    common = {"compute_environment": "LOCAL_MACHINE", "num_processes": 16, "num_machines": 2}
    file.write_text(yaml.safe_dump({**common, **ACCELERATE[kind]}))
    assert of_accelerate(file) == Sharding(kind, 16)
    assert of_accelerate(file, 4) == Sharding(kind, 4)


def test_offloading_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    how = {"zero_stage": 3, "offload_optimizer_device": "cpu"}
    file.write_text(
        yaml.safe_dump(
            {"compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED", "deepspeed_config": how}
        )
    )
    with pytest.raises(ValueError, match="offload_optimizer_device"):
        of_accelerate(file)


def test_a_tokenizer_beside_the_config_counts_the_prompts(tmp_path, capsys):
    path = folder_of(tmp_path, vocab_size=400)
    make_tokenizer().save_pretrained(path)
    _, found = plan(capsys, "--model_name_or_path", path)
    assert any("the longest of the first 200 rows" in line for line in found["assumptions"])
