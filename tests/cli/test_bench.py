"""The benches run, count and agree. How fast they are is for a quiet machine to say, not for a test."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from a2tgpo_trl.cli import bench_credit, bench_gain, bench_tools, main
from a2tgpo_trl.tools.control import ControlText


TINY_MODEL = "--hidden 16 --layers 1 --vocab 50 --device cpu".split()
TINY_GAIN = [*"bench gain --tokens 40 --prompt-tokens 8 --probe-tokens 3 --repeats 1".split(), *TINY_MODEL]
TINY_CREDIT = "bench credit --rollouts 8 --tokens 24 --turns 3 --group-size 4 --repeats 2".split()
TINY_TOOLS = "bench tools --rollouts 5 --turns 2 --tool-ms 100 --concurrency 5".split()


def tiny_model():
    return bench_gain.load_model(None, {"hidden": 16, "layers": 1, "vocab": 50}, "sdpa", None, "cpu", 0)


def cells(output: str, first: str) -> list[str]:
    """The cells of the table row that begins with this one."""
    return next(line.split() for line in output.splitlines() if line.split()[:1] == [first])


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


def test_credit_prints_the_comparison_and_three_lengths(capsys):
    assert main(TINY_CREDIT) == 0
    output = capsys.readouterr().out
    assert output.count("equal") == 2
    assert cells(output, "tensors")[1:4] == cells(output, "lists")[1:4] == ["8", "24", "3"]
    rows = [line.split()[:2] for line in output.splitlines() if line.split()[:1] == ["8"]]
    assert rows == [["8", "24"], ["8", "48"], ["8", "96"]]


def test_credit_compares_a_part_where_asked_and_says_so(capsys):
    assert main([*TINY_CREDIT, "--plain-rollouts", "5"]) == 0
    assert cells(capsys.readouterr().out, "lists")[1:4] == ["5", "24", "3"]


def test_credit_that_disagrees_is_an_error(capsys, monkeypatch):
    monkeypatch.setattr(bench_credit, "vectorised", lambda case, right=bench_credit.vectorised: shifted(right(case)))
    assert main(TINY_CREDIT) == 1
    assert "disagree" in capsys.readouterr().err


def shifted(results: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    turn_NT, advantages_NT, *ranges = results
    return turn_NT, advantages_NT + 1e-3, *ranges


def test_made_rollouts_have_the_turns_that_were_asked_for():
    case = bench_credit.make_case(20, 15, turns=7, group_size=4, seed=3)
    turn_NT = bench_credit.vectorised(case)[0]
    assert (turn_NT.amax(dim=1) == 6).all()
    assert case.gains_NK[:, -1].isnan().all()


@pytest.mark.parametrize("way", [bench_credit.over_tensors, bench_credit.over_lists])
@pytest.mark.parametrize("seed", range(5))
def test_the_plain_way_equals_the_vectorised_way_on_random_masks(seed, way):
    generator = torch.Generator().manual_seed(seed)
    mask_NT = (torch.rand(12, 30, generator=generator) < 0.6).long()
    mask_NT[0] = 0
    gains_NK = torch.randn(12, 15, generator=generator)  # 30 tokens hold 15 turns at most
    gains_NK[torch.rand(12, 15, generator=generator) < 0.4] = torch.nan
    groups_N = torch.randint(3, (12,), generator=generator)
    case = bench_credit.Case(mask_NT, gains_NK, groups_N, torch.randn(12, generator=generator))
    run, _ = way(case)
    turns, *numbers = map(torch.as_tensor, run())
    turn_NT, *tensors = bench_credit.vectorised(case)
    assert torch.equal(turns, turn_NT)
    for rows, tensor in zip(numbers, tensors, strict=True):
        torch.testing.assert_close(rows, tensor, atol=1e-5, rtol=0)


def test_the_plain_way_by_hand():
    mask = [[1, 1, 0, 0, 1, 0], [0, 1, 1]]
    blank = [[0] * 6, [0] * 3]
    assert bench_credit.plain_turns(mask, blank) == [[0, 0, -1, -1, 1, -1], [-1, 0, 0]]
    # 2 and 1: three over the root of two terms, then one alone; the turn without a score adds no term.
    assert bench_credit.plain_sums([2.0, float("nan"), 1.0]) == pytest.approx([3 / 2**0.5, 0.0, 1.0])


def test_tools_prints_what_both_ways_take_and_that_they_come_to_the_same_rollouts(capsys):
    assert main(TINY_TOOLS) == 0
    output = capsys.readouterr().out
    assert "token ids and masks: equal" in output and "0.1 s a turn at least" in output
    # The fastest turn: all calls at once take 0.1 s, and one after the other 5 * 0.1.
    assert 0.1 <= float(cells(output, "ours")[2])
    assert 0.5 <= float(cells(output, "TRL")[2])


def test_tools_times_each_tool_turn_and_keeps_to_the_concurrency():
    found = bench_tools.measure(bench_tools.Load(rollouts=4, turns=3, tool_seconds=0.1, concurrency=2))
    assert {way: len(timings) for way, timings in found.timings.items()} == {"ours": 3, "TRL": 3}
    assert min(found.timings["ours"]) >= 0.2  # 2 at once: 4 calls are 2 * 0.1 s
    assert found.differences == []
    assert bench_tools.Load(rollouts=64, turns=1, tool_seconds=0.5, concurrency=10).least_seconds == 7 * 0.5


def test_tools_plays_every_turn_of_the_script(tmp_path):
    way = bench_tools.make_ways(bench_tools.Load(2, 2, 0.0, 2), bench_tools.slow_search(lambda: None), str(tmp_path))
    batch, _ = way["TRL"].roll_out(2)
    tokenizer = way["TRL"].script._tokenizer
    first, second = tokenizer.batch_decode(batch["completion_ids"])
    assert first.count("<tool_call>") == first.count("<tool_response>") == 2
    assert "question 0 of 1" in second and "question 1 of 1" in second and "<answer>1</answer>" in second
    written = tokenizer.decode(batch["completion_ids"][0][batch["tool_mask"][0] == 1])
    assert written.count("<tool_call>") == 2 and "<tool_response>" not in written
    way["ours"].close()


def test_tools_that_come_to_other_rollouts_are_an_error(capsys, monkeypatch):
    monkeypatch.setattr(
        ControlText, "encode", lambda self, messages, right=ControlText.encode: (right(self, messages)[0][1:], False)
    )
    assert main([*TINY_TOOLS, "--tool-ms", "1"]) == 1
    captured = capsys.readouterr()
    assert "disagree in completion_ids" in captured.err and "tool_mask" in captured.err
    assert "prompt_ids" not in captured.err and "equal" not in captured.out


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["bench", "gain", "--turns", "0"], "--turns"),
        (["bench", "gain", "--repeats", "few"], "--repeats"),
        (["bench", "gain", "--dtype", "int8"], "--dtype"),
        ([*TINY_GAIN, "--turns", "16"], "--turns"),  # 2 * 16 + 1 tokens do not fit into 40 - 8
        ([*TINY_GAIN, "--attention", "nonesuch"], "--attention"),
        (["bench", "gain", "--model", "somewhere", "--hidden", "64"], "--hidden"),
        (["bench", "credit", "--rollouts", "1"], "--rollouts"),
        ([*TINY_CREDIT, "--tokens", "5"], "--tokens"),
        ([*TINY_CREDIT, "--plain-rollouts", "9"], "--plain-rollouts"),
        (["bench", "tools", "--rollouts", "0"], "--rollouts"),
        (["bench", "tools", "--turns", "0"], "--turns"),
        (["bench", "tools", "--tool-ms", "-1"], "--tool-ms"),
        (["bench", "tools", "--concurrency", "none"], "--concurrency"),
        (["bench", "stream", "--rollouts", "0"], "--rollouts"),
        (["bench"], "BENCH"),
        ([], "COMMAND"),
    ],
)
def test_impossible_requests_end_with_code_2_and_name_the_option(argv, named, capsys):
    assert main(argv) == 2
    assert named in capsys.readouterr().err


def test_a_model_that_is_not_there_ends_with_code_2(tmp_path, capsys):
    assert main(["bench", "gain", "--model", str(tmp_path / "nowhere")]) == 2
    assert "--model" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_streams_without_vllm_end_with_code_2(capsys):
    assert main(["bench", "stream"]) == 2
    assert "a2tgpo_trl[vllm]" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_cuda_device_ends_with_code_2(capsys):
    assert main(["bench", "gain", "--device", "cuda"]) == 2
    assert "--device" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = "import sys; from a2tgpo_trl.cli import main; sys.exit(main(['bench', '--help']) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
