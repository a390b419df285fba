"""The benches run, count and agree. Their speed must be measured on a quiet machine, not by a test."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl.cli import bench_gain, bench_step, main
from a2tgpo_trl.cli.bench import RANDOM
from a2tgpo_trl.cli.bench_policy import SIZES, write_recipe
from a2tgpo_trl.recipe import read_recipe


ONE_BATCH = "--gradient_accumulation_steps 1".split()
TINY_MODEL = "--hidden 16 --layers 1 --vocab 50 --device cpu".split()
TINY_GAIN = [*"bench gain --tokens 40 --prompt-tokens 8 --probe-tokens 3 --repeats 1".split(), *TINY_MODEL]


def tiny_model():
    return bench_gain.load_model(None, {"hidden": 16, "layers": 1, "vocab": 50}, "sdpa", None, "cpu", 0)


def cells(output: str, first: str) -> list[str]:
    """The cells of the table row that begins with this one."""
    return next(line.split() for line in output.splitlines() if line.split()[:1] == [first])


@pytest.mark.parametrize("seed", [["--seed", "3"], ["--seed=3"]])
def test_seed_option_is_passed_on_to_the_recipe(seed, monkeypatch):
    trained = []
    monkeypatch.setattr(bench_step, "_measure", lambda recipe, words, *_: trained.append([*words]) or {})
    monkeypatch.setattr("a2tgpo_trl.cli.bench._step_table", lambda found: sys.exit(0))
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "step", "quickstart", *seed])
    assert trained == [seed]


def test_gain_prints_a_row_for_each_number_of_turns(capsys):
    assert main([*TINY_GAIN, "--turns", "1", "3"]) == 0
    output = capsys.readouterr().out
    assert "float32" in output and "sdpa" in output and torch.__version__ in output
    # turns, three timings, four ratios, two differences
    assert len(cells(output, "1")) == len(cells(output, "3")) == 10


def test_gain_counts_the_tokens_that_the_passes_read():
    # Completion 30 = 3 turns of 10, so contexts of 10, 20 and 30 tokens. The last token of a probe predicts nothing
    # and is not read, but a packed probe begins with a copy of its last context token.
    shape = bench_gain.Shape(rollouts=2, tokens=40, prompt_tokens=10, turns=2, probe_tokens=4)
    found = bench_gain.measure(tiny_model(), shape, repeats=1, seed=0)
    assert found.tokens == {"plain": 2 * 40, "packed": 2 * (40 + 3 * 4), "prefill": 2 * (10 + 20 + 30 + 3 * 3)}
    assert found.token_ratio(("packed",), "plain") == 52 / 40
    assert found.token_ratio(("plain", "prefill"), "packed") == (40 + 69) / 52


@pytest.mark.parametrize("probe_tokens", [1, 5])
def test_gain_passes_find_the_same_values_and_log_probabilities(probe_tokens):
    shape = bench_gain.Shape(rollouts=3, tokens=33, prompt_tokens=1, turns=4, probe_tokens=probe_tokens)
    found = bench_gain.measure(tiny_model(), shape, repeats=1, seed=0)
    assert found.value_difference < 1e-5
    assert found.logp_difference < 1e-5


def test_reprefill_is_one_forward_for_each_context():
    passes, _ = bench_gain._passes(tiny_model(), bench_gain.Shape(3, 40, 10, turns=4, probe_tokens=2), 0)
    assert passes["prefill"]().forwards == 5
    assert passes["packed"]().forwards == 1


def test_a_ratio_is_the_median_over_repeats_and_not_the_ratio_of_medians():
    timings = {"plain": [1.0, 4.0, 2.0], "packed": [2.0, 4.0, 6.0], "prefill": [3.0, 8.0, 1.0]}
    found = bench_gain.GainTimes(1, timings, {"plain": 1, "packed": 1, "prefill": 1}, None, 0.0, 0.0)
    assert found.time_ratio(("packed",), "plain") == 2.0  # of 2, 1, 3
    assert found.time_ratio(("plain", "prefill"), "packed") == 2.0  # of 4/2, 12/4, 3/6


def test_step_times_real_steps_of_both_trainers(capsys):
    words = "bench step quickstart --steps 1 --seeds 2 --per_device_train_batch_size 8"
    assert main([*words.split(), *ONE_BATCH]) == 0
    output = capsys.readouterr().out
    for way in bench_step.WAYS:
        step, processor, before_the_loss, gain_pass, loss, rest, tokens, each = map(float, cells(output, way)[1:])
        # All are printed with four digits, the last with three.
        assert step == pytest.approx(before_the_loss + loss + rest, rel=2e-3)
        assert min(processor, before_the_loss, loss, rest, tokens) > 0
        assert each == pytest.approx(1000 * step / tokens, rel=1e-2)
        assert (0 < gain_pass < before_the_loss) if way == "ours" else gain_pass == 0
    assert "ours / TRL over 2 steps, with 95 % confidence: " in output


@pytest.mark.slow
def test_the_random_policy_takes_turns_of_all_lengths_behind_long_prompts(tmp_path):
    words = "--use_cpu true --max_completion_length 400".split()
    recipe = read_recipe(["--config", write_recipe(str(tmp_path)), *words])
    trainer = recipe.build_trainer()
    assert 15e6 < sum(weight.numel() for weight in trainer.model.parameters()) < 25e6
    records = trainer.roll_out(trainer.train_dataset.select(range(1)).to_list())
    assert 1200 < len(trainer._tokenize_prompts([records[0]["prompt"]])[0][0]) < 1600
    turns = [len(record["turns"]) for record in records]
    assert max(turns) > 2 and len(set(turns)) > 1
    calls = [call for record in records for turn in record["turns"] for call in turn["calls"]]
    assert calls and {call["status"] for call in calls} <= {"ok", "over_budget"}


def test_the_names_of_random_policies_are_those_that_have_sizes():
    assert set(RANDOM) == set(SIZES)


def test_step_bench_compares_with_the_trl_trainer_at_equal_settings(tmp_path):
    recipe = read_recipe(["--config", "quickstart", "--output_dir", str(tmp_path), *ONE_BATCH])
    theirs = bench_step.make_theirs(recipe)
    assert type(theirs) is GRPOTrainer and type(theirs.args) is GRPOConfig
    same = ("learning_rate", "num_generations", "per_device_train_batch_size", "max_completion_length", "epsilon")
    for name in (*same, "gradient_accumulation_steps", "steps_per_generation", "max_tool_calling_iterations"):
        assert getattr(theirs.args, name) == getattr(recipe.args, name)
    assert theirs.args.importance_sampling_level == "token" != recipe.args.importance_sampling_level
    assert theirs.args.reward_weights == recipe.args.reward_weights and len(theirs.tools) == 1


def test_steps_alternate_until_one_way_has_ended():
    alternation, steps = bench_step.Alternation(), []

    def take(place: int, number: int) -> None:
        alternation.wait(place)
        for _ in range(number):
            steps.append(place)
            alternation.hand_over(place)
        alternation.end()

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(take, 1, 2), threads.submit(take, 0, 4)]:
            done.result(30)
    assert steps == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["bench", "gain", "--turns", "0"], "--turns"),
        (["bench", "gain", "--repeats", "few"], "--repeats"),
        (["bench", "gain", "--dtype", "int8"], "--dtype"),
        ([*TINY_GAIN, "--turns", "16"], "--turns"),  # 2 * 16 + 1 tokens do not fit into 40 - 8
        ([*TINY_GAIN, "--attention", "nonesuch"], "--attention"),
        (["bench", "gain", "--model", "somewhere", "--hidden", "64"], "--hidden"),
        (["bench", "step", "quickstart", "--steps", "0"], "--steps"),
        (["bench", "step", "nonesuch"], "nonesuch"),
        (["bench", "step", "quickstart", "--credti", "grpo"], "--credti"),
        (["bench"], "BENCH"),
        ([], "COMMAND"),
    ],
)
def test_invalid_bench_options_exit_with_code_2_and_are_named(argv, named, capsys):
    assert main(argv) == 2
    assert named in capsys.readouterr().err


def test_a_model_that_is_not_there_ends_with_code_2(tmp_path, capsys):
    assert main(["bench", "gain", "--model", str(tmp_path / "nowhere")]) == 2
    assert "--model" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_cuda_device_ends_with_code_2(capsys):
    assert main(["bench", "gain", "--device", "cuda"]) == 2
    assert "--device" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = "import sys; from a2tgpo_trl.cli import main; sys.exit(main(['bench', '--help']) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
