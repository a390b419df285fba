"""`a2tgpo plan`: memory and seconds against arithmetic by hand. Against real runs: test_plan_measured.py."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig
from tiny import make_tokenizer
from transformers import Qwen3Config

from a2tgpo_trl.cli import main
from a2tgpo_trl.cli.plan import rollouts_of
from a2tgpo_trl.plan.hardware import Curve, Machine, Shares, from_sheet
from a2tgpo_trl.plan.lengths import Lengths, Turn, assumed, recorded
from a2tgpo_trl.plan.memory import gain_rows, plan_memory, states
from a2tgpo_trl.plan.policy import Parameters, Policy, Training
from a2tgpo_trl.plan.report import CURES
from a2tgpo_trl.plan.seconds import Case, plan_seconds
from a2tgpo_trl.plan.setting import Engine, Setting
from a2tgpo_trl.plan.sharding import Sharding, of_accelerate
from a2tgpo_trl.plan.tracing import Op, Tracer, Work, touched_bytes
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
        "generations": 1.0,
        "engine": Engine(),
        "gain": True,
        "gain_token_budget": 16384,
        "old_logps": False,
        "shares_logps": True,
        "reference": "none",
        "max_completion_length": 64,
        "tool_concurrency": 64,
        "quantized_bits": None,
        "gathers_for_generation": True,
        "compute_bytes": 4,
        "stored_bytes": 4,
    }
    return Setting(**{**plain, **changes})


LENGTHS = assumed(
    prompt=10, longest_prompt=12, turns=2, tokens=5, results=10, tool_seconds=0.5, spread=1.5, probe=4, most=64
)


# ---- tracing


def test_peak_memory_is_what_is_held_at_once():
    def run():
        a = torch.ones(1000)  # 4,000 bytes
        b = a + 1  # 8,000
        del a
        c = b * 2  # 8,000
        b.add_(1)  # in place: nothing
        return c.view(10, 100)

    with Tracer() as tracer:
        kept = run()
    assert (tracer.work.peak_bytes, tracer.work.kept_bytes) == (8000, 4000)
    assert kept.shape == (10, 100)


def test_reserved_memory_counts_where_it_is_written():
    with Tracer(resident=True) as tracer:
        reserved = torch.empty(10, 32768)
        part = reserved[:, :100]
        part.fill_(1.0)
    assert touched_bytes(part) == 10 * 4096  # each row of 400 bytes on a page of its own
    assert tracer.work.peak_bytes == 10 * 4096


def test_operations_of_a_backward_pass_are_told_apart():
    weight = torch.ones(8, 8, requires_grad=True)
    with Tracer() as tracer:
        (torch.ones(4, 8) @ weight).sum().backward()
    flops = {op.backward: op.flops for op in tracer.work.ops if op.kind == "matmul"}
    assert flops == {False: 2 * 4 * 8 * 8, True: 2 * 4 * 8 * 8}


# ---- the policy


def test_weights_are_counted_once_where_they_are_tied():
    norms = LAYERS * (2 * HIDDEN + 2 * HEAD_DIM) + HIDDEN
    expected = VOCABULARY * HIDDEN + LAYERS * LAYER_MATMULS + norms
    assert policy().parameters.all == policy().parameters.trained == expected


def test_a_forward_takes_two_flops_a_weight_and_token_and_those_of_attention():
    rows, length = 3, 16
    matmuls = 2 * rows * length * LAYERS * LAYER_MATMULS
    head = 2 * rows * (length - 1) * VOCABULARY * HIDDEN  # the last token predicts nothing
    attention = LAYERS * 2 * 2 * rows * HEADS * length**2 * HEAD_DIM
    rotary = 2 * (HEAD_DIM // 2) * length  # a product of positions and frequencies, in some versions of the model
    found = policy().score(rows, length).flops
    assert 0 <= found - (matmuls + head + attention) <= rotary


def test_adam_keeps_two_numbers_a_weight():
    found = policy()
    tensors = found.parameters.tensors
    assert found.update().kept_bytes == 8 * found.parameters.trained + 4 * tensors  # and its step counts


def test_checkpointing_holds_less_and_computes_the_forward_twice():
    plain, checkpointed = policy().learn(4, 64, True), policy(checkpointing=True).learn(4, 64, True)
    assert checkpointed.peak_bytes < 0.7 * plain.peak_bytes
    assert 1.2 < checkpointed.flops / plain.flops < 4 / 3  # the head is not computed again


def test_one_token_attends_to_the_cache_and_itself():
    rows, context = 3, 20
    steps = {op.flops: count for op, count in policy().decode(rows, context).ops.items() if op.kind == "step"}
    assert steps == {2 * 2 * rows * HEADS * (context + 1) * HEAD_DIM: LAYERS}


def test_the_cache_holds_keys_and_values_of_each_layer():
    rows, length = 2, 50
    assert policy().prefill(rows, length).kept_bytes == 4 * rows * length * LAYERS * 2 * KV_HEADS * HEAD_DIM
    assert policy().cache_numbers == LAYERS * 2 * KV_HEADS * HEAD_DIM


def test_an_adapter_is_all_that_is_trained():
    found = policy(adapter=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")).parameters
    assert found.trained == LAYERS * 4 * (HIDDEN + HEADS * HEAD_DIM)
    assert found.quantizable == LAYERS * LAYER_MATMULS  # the head, tied to the embedding, is not


def test_dropout_of_an_adapter_holds_what_it_has_dropped():
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1)
    dropping, off = (policy(adapter=adapter, disable_dropout=off).learn(4, 64, True) for off in (False, True))
    assert dropping.peak_bytes > 1.1 * off.peak_bytes


# ---- memory


@pytest.mark.parametrize(
    "kind, devices, stored, expected, gradients",
    [
        # Adam in float32: 4 + 8 + 4 bytes a weight
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


H100 = from_sheet("h100", Shares())


def peak(kind: str, devices: int) -> float:
    found = policy(dtype=torch.bfloat16, accelerated=True)
    how = setting(stored_bytes=2, compute_bytes=2)
    return plan_memory(found, how, Sharding(kind, devices), LENGTHS, H100, full=True).peak


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_more_gpus_never_take_more_memory_each(kind):
    peaks = [peak(kind, devices) for devices in (1, 2, 8, 64)]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > peaks[-1]


def test_longer_rollouts_take_more_memory():
    full, usual = (plan_memory(policy(), setting(), Sharding(), LENGTHS, H100, full).peak for full in (True, False))
    assert full > usual


def test_an_evaluation_holds_what_sampling_its_rows_holds_and_nothing_else():
    def stages(**changes) -> dict[str, dict[str, float]]:
        how = setting(old_logps=True, reference="model", **changes)
        return plan_memory(policy(), how, Sharding(), LENGTHS, H100, full=True).stages

    found = stages(evaluated=40)
    assert found["evaluation"]["KV cache of an evaluation"] == 10 * found["sampling"]["KV cache"]  # 40 rows for 4
    assert set(found["evaluation"]) == {"KV cache of an evaluation", "work of an evaluation"}
    assert "evaluation" not in stages()
    memory = plan_memory(policy(), setting(evaluated=4000), Sharding(), LENGTHS, H100, full=True)
    assert memory.peak_stage == "evaluation" and set(memory.peak_parts) - set(memory.stays) <= set(CURES)
    colocated = stages(evaluated=40, engine=Engine("colocate", memory_share=0.3))
    assert colocated["evaluation"] == {}  # in vLLM's own share, which is there already


def test_the_gain_pass_takes_as_many_rows_as_its_budget():
    # 900 tokens and 4 probes of 16: 964 in a row, 16 of them in 16384
    turns = (Turn(1.0, 10, 10, 10, 1.0),) * 3 + (Turn(1.0, 10, 10),)
    lengths = Lengths(10, 10, turns, 890, probe=16)
    assert gain_rows(setting(generated=64), lengths, 900) == (16, 964)
    assert gain_rows(setting(generated=64, gain_token_budget=1), lengths, 900) == (1, 964)


# ---- seconds


def machine(**changes) -> Machine:
    plain = {
        "name": "slow",
        "source": "a test",
        "memory_bytes": 1e9,
        "matmul": Curve.constant(1000.0),
        "attention": Curve.constant(500.0),
        "step": Curve.constant(250.0),
        "bandwidth": Curve.constant(100.0),
        "forward_op_seconds": 1.0,
        "backward_op_seconds": 2.0,
        "sampling_seconds": 0.0,
        "node_link": 1e9,
        "cluster_link": 1e9,
        "asynchronous": False,
    }
    return Machine(**{**plain, **changes})


def test_an_operation_takes_its_arithmetic_or_its_memory_and_its_own_cost():
    computing, reading = Op("matmul", 3000, 100, False), Op("memory", 0, 400, True)
    assert machine().op_seconds(computing) == 3 + 1  # 3000 / 1000 is more than 100 / 100
    assert machine().op_seconds(reading) == 4 + 2
    assert machine(asynchronous=True).op_seconds(reading) == 4  # its cost hides behind the one before
    assert machine().op_seconds(Op("step", 1000, 100, False)) == 4 + 1
    work = Work(type(policy().score(1, 2).ops)({computing: 2, reading: 1}))
    assert machine().seconds(work) == 2 * 4 + 6


def test_a_rate_between_two_sizes_is_between_their_rates():
    curve = Curve((1, 3), (10, 30))
    assert [curve.at(size) for size in (0, 1, 2, 3, 9)] == [10, 10, 20, 30, 30]


def stages(tool_seconds: float, **changes) -> dict[str, float]:
    lengths = assumed(
        prompt=10,
        longest_prompt=12,
        turns=2,
        tokens=5,
        results=10,
        tool_seconds=tool_seconds,
        spread=1,
        probe=4,
        most=64,
    )
    return plan_seconds(Case(policy(accelerated=True), setting(**changes), Sharding(), lengths, H100))


def test_slow_tools_become_the_bottleneck():
    quick, slow = stages(0.0), stages(30.0)
    assert "tools" not in quick and max(quick, key=quick.get) == "sampling"
    assert max(slow, key=slow.get) == "tools" and slow["tools"] == 30.0
    assert {name: value for name, value in slow.items() if name != "tools"} == quick


def test_tools_that_may_not_run_at_once_wait_for_each_other():
    assert stages(1.0, tool_concurrency=3)["tools"] == 2.0  # 4 rollouts, 3 at a time


def test_what_is_sampled_in_parts_takes_their_times_one_after_the_other_and_the_memory_of_one():
    assert stages(0.0, sampled_at_once=2)["sampling"] == 2 * stages(0.0, generated=2)["sampling"]
    many, parts, one_part = (
        plan_memory(policy(), setting(**sizes), Sharding(), LENGTHS, H100, full=True).peak
        for sizes in ({"generated": 4096}, {"generated": 4096, "sampled_at_once": 512}, {"generated": 512})
    )
    assert many > parts == one_part


def test_packed_rows_are_as_wide_as_the_longest_only_where_one_forward_takes_all():
    # rows of 20 tokens on average, 30 at most, and 2 probes of 4: 4 of 38 in one forward, or one by one of 28
    lengths = Lengths(10, 10, (Turn(1.0, 5, 5, 0, 1.0), Turn(1.0, 5, 5)), 20, probe=4)
    found = policy()
    for budget, forwards, shape in ((16384, 1, (4, 38)), (40, 4, (1, 28))):
        case = Case(found, setting(gain_token_budget=budget), Sharding(), lengths, machine())
        assert plan_seconds(case)["gain pass"] == forwards * machine().seconds(found.score(*shape))


def test_what_is_scored_twice_to_see_its_rounding_takes_its_time():
    once, twice = (stages(0.0, scored_twice=number)["gain pass"] for number in (0, 4))
    assert twice == 2 * once  # all four rollouts of the batch


def test_old_log_probabilities_take_a_pass_only_where_the_gain_pass_does_not_give_them():
    assert "old log-probabilities" not in stages(0.0, old_logps=True)
    assert "old log-probabilities" in stages(0.0, old_logps=True, shares_logps=False)
    assert "old log-probabilities" in stages(0.0, old_logps=True, gain=False)


def test_reducing_over_nodes_is_as_fast_as_all_ports_of_a_node():
    assert Sharding("ddp", 8, 1).link(450, 50) == 450
    assert Sharding("ddp", 64, 8).link(450, 50) == 400  # 8 ports of 50
    assert Sharding("ddp", 8, 1).gathered(16) == 14


# ---- lengths


def test_assumed_turns_by_hand():
    found = assumed(
        prompt=50, longest_prompt=60, turns=2.5, tokens=100, results=200, tool_seconds=1, spread=2, probe=16, most=9999
    )
    assert [turn.share for turn in found.turns] == [1.0, 1.0, 0.5]
    assert (found.sampled, found.results) == (250, 300)  # 1.5 tool turns
    assert found.context(2) == 50 + 100 + 200 + 100 + 100  # half of the second turns call a tool
    assert found.longest_completion == 2 * 550


def test_recorded_turns_by_hand():
    def turn(out, into):
        return {"tokens_out": out, "tokens_in": into, "seconds": 0.5}

    records = [{"turns": [turn(10, 20), turn(30, 0)]}, {"turns": [turn(20, 0)]}, {"turns": [turn(60, 0)]}]
    found = recorded(records, 2, prompt=5, longest_prompt=6, probe=8)
    first, second = found.turns
    assert (first.share, first.tokens, first.longest) == (1.0, 30, (20 + 60) / 2)
    assert (first.tool_share, first.tool_seconds) == (1 / 3, 0.5)
    assert (second.share, second.tokens, second.longest) == (1 / 3, 30, (30 + 0) / 2)
    assert found.longest_completion == (60 + 60) / 2


# ---- the command


def folder_of(tmp_path, **settings) -> str:
    path = tmp_path / "model"
    config(architectures=["Qwen3ForCausalLM"], **settings).save_pretrained(path)
    return str(path)


def plan(capsys, *words: str) -> tuple[int, dict]:
    code = main(["plan", "quickstart", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def test_a_folder_with_a_config_alone_is_planned(tmp_path, capsys):
    words = ["--model_name_or_path", folder_of(tmp_path), "--bf16", "true", "--tokens_per_turn", "20"]
    code, found = plan(capsys, *words, "--tool_tokens", "40", "--gpus", "8", "--sharding", "zero3")
    assert code == 0 and found["fits"]
    assert found["devices"] == 8 and found["rollouts_per_step"] == 8 * 64
    assert found["tokens_per_step"] == {"prompts": 300 * 512, "sampled": 80 * 512, "tool results": 120 * 512}
    assert found["step_seconds"] == pytest.approx(sum(found["seconds"].values()))
    assert found["hours"] == pytest.approx(40 * found["step_seconds"] / 3600)
    assert any("not counted" in line for line in found["assumptions"])


def test_what_does_not_fit_is_said_with_what_to_change(tmp_path, capsys):
    model = folder_of(tmp_path, hidden_size=8192, intermediate_size=28672, num_hidden_layers=2, vocab_size=128000)
    words = ["--model_name_or_path", model, "--bf16", "true", "--gpu", "l4", "--tokens_per_turn", "20"]
    code, found = plan(capsys, *words, "--tool_tokens", "40", "--eval_rows", "0")
    assert code == 1 and not found["fits"]
    assert "optimiser" in found["verdict"] and "--sharding zero2" in found["verdict"]


SHIPPED = sorted(file.stem for file in recipe_folder().glob("*.yaml"))


@pytest.mark.parametrize(
    "recipe", [name if name == "quickstart" else pytest.param(name, marks=pytest.mark.slow) for name in SHIPPED]
)
def test_each_recipe_is_planned_with_rollouts_that_it_has_room_for(recipe, tmp_path, capsys):
    words = ["--model_name_or_path", folder_of(tmp_path)]
    if recipe == "gtpo_math":  # its problems are on the hub
        for split in ("train", "test"):
            (tmp_path / f"{split}.jsonl").write_text('{"question": "3 * 24?", "answer": "#### 72"}\n')
        words += ["--task_kwargs", json.dumps({"path": str(tmp_path)})]
    assert main(["plan", recipe, "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    sampled, results = (found["tokens_per_step"][name] for name in ("sampled", "tool results"))
    rules = yaml.safe_load((recipe_folder() / f"{recipe}.yaml").read_text())
    # The longest of a batch is 1.5 times the average.
    assert 0 < sampled + results <= rules.get("max_completion_length", 512) / 1.5 * found["rollouts_per_step"]


def test_rollouts_are_assumed_as_long_as_the_recipe_lets_them_be():
    def assumptions(**limits):
        given = SimpleNamespace(turns=None, tokens_per_turn=None, tool_tokens=None, spread=1.5)
        task = SimpleNamespace(tools=[print], environment_factory=None)
        return rollouts_of(given, SimpleNamespace(args=SimpleNamespace(**limits), task=task))

    # 4 turns of 200 and 3 results of 300 are 1,700 tokens. 512 / 1.5 = 341 is a fifth of it: 40 and 60.
    assert assumptions(max_completion_length=512, max_tool_calling_iterations=None) == (4, 40, 60)
    assert assumptions(max_completion_length=4096, max_tool_calling_iterations=1) == (2, 200, 300)


def test_the_text_names_bottleneck_and_assumptions(capsys):
    assert main(["plan", "quickstart", "--tool_seconds", "60", "--tokens_per_turn", "20", "--tool_tokens", "40"]) == 0
    output = capsys.readouterr().out
    assert "Bottleneck: tools." in output and "tool_concurrency" in output
    assert "NVIDIA H100 SXM data sheet" in output and "computed" in output
    assert "60 s of tools" in output and "counted in the first 200 rows" in output


def test_rollouts_on_record_stand_in_for_assumptions(tmp_path, capsys):
    file = tmp_path / "after.jsonl"
    turns = [{"tokens_out": 10, "tokens_in": 20, "seconds": 0.1}, {"tokens_out": 30, "tokens_in": 0, "seconds": 0.0}]
    file.write_text(json.dumps({"turns": turns}) + "\n")
    _, found = plan(capsys, "--rollouts", str(file))
    assert found["tokens_per_step"]["sampled"] == 64 * 40


@pytest.mark.parametrize(
    "words, message",
    [
        (["--gpu", "h10"], "Did you mean 'h100'?"),
        (["--sharding", "zero4", "--gpus", "2"], "Did you mean 'zero"),
        (["--gpus", "2", "--sharding", "none"], "is for one device"),
        (["--gpu", "this", "--gpus", "2"], "measures one processor"),
        (["--gpus", "3", "--nodes", "2"], "do not spread evenly"),
        (["--model_name_or_path", "/nowhere/model"], "there is no folder /nowhere/model"),
        (["--turns", "9", "--tokens_per_turn", "500"], "more than max_completion_length 512"),
        (["--config_file", "nowhere.yaml"], "no configuration of Accelerate 'nowhere.yaml'"),
        (["--config_file", "a.yaml", "--gpus", "2"], "say the same thing twice"),
        (["--lerning_rate", "1"], "Did you mean 'learning_rate'?"),
    ],
)
def test_what_cannot_be_planned_is_said(words, message, capsys):
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
    assert of_accelerate(file) == Sharding(kind, 16, 2)


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
    _, found = plan(capsys, "--model_name_or_path", path, "--tokens_per_turn", "20", "--tool_tokens", "40")
    assert any("counted in the first 200 rows" in line for line in found["assumptions"])
