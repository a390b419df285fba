"""The benches run, count and agree. Their speed must be measured on a quiet machine, not by a test."""

import credit_speed
import pytest
import recording_cost
import tool_loop
import torch

from a2tgpo_trl.tools.control import ControlText


TINY_CREDIT = "--rollouts 8 --tokens 24 --turns 3 --group-size 4 --repeats 2".split()
TINY_TOOLS = "--rollouts 5 --turns 2 --tool-ms 100 --concurrency 5".split()


def cells(output: str, first: str) -> list[str]:
    """The cells of the table row that begins with this one."""
    return next(line.split() for line in output.splitlines() if line.split()[:1] == [first])


def test_credit_prints_the_comparison_and_three_lengths(capsys):
    assert credit_speed.main(TINY_CREDIT) == 0
    output = capsys.readouterr().out
    assert output.count("equal") == 2
    assert cells(output, "tensors")[1:4] == cells(output, "lists")[1:4] == ["8", "24", "3"]
    rows = [line.split()[:2] for line in output.splitlines() if line.split()[:1] == ["8"]]
    assert rows == [["8", "24"], ["8", "48"], ["8", "96"]]


def test_credit_bench_compares_only_the_part_named_by_compared(capsys):
    assert credit_speed.main([*TINY_CREDIT, "--compared", "5"]) == 0
    assert cells(capsys.readouterr().out, "lists")[1:4] == ["5", "24", "3"]


def test_credit_bench_fails_if_the_two_ways_disagree(capsys, monkeypatch):
    monkeypatch.setattr(credit_speed, "vectorised", lambda case, right=credit_speed.vectorised: shifted(right(case)))
    assert credit_speed.main(TINY_CREDIT) == 1
    assert "disagree" in capsys.readouterr().err


def shifted(results: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    turn_NT, advantages_NT, *ranges = results
    return turn_NT, advantages_NT + 1e-3, *ranges


def test_made_case_has_the_requested_number_of_turns():
    case = credit_speed.make_case(20, 15, turns=7, group_size=4, seed=3)
    turn_NT = credit_speed.vectorised(case)[0]
    assert (turn_NT.amax(dim=1) == 6).all()
    assert case.gains_NK[:, -1].isnan().all()


@pytest.mark.parametrize("way", [credit_speed.over_tensors, credit_speed.over_lists])
@pytest.mark.parametrize("seed", range(5))
def test_plain_and_vectorised_credit_are_equal_on_random_masks(seed, way):
    generator = torch.Generator().manual_seed(seed)
    mask_NT = (torch.rand(12, 30, generator=generator) < 0.6).long()
    mask_NT[0] = 0
    gains_NK = torch.randn(12, 15, generator=generator)  # 30 tokens hold 15 turns at most
    gains_NK[torch.rand(12, 15, generator=generator) < 0.4] = torch.nan
    groups_N = torch.randint(3, (12,), generator=generator)
    case = credit_speed.Case(mask_NT, gains_NK, groups_N, torch.randn(12, generator=generator))
    run, _ = way(case)
    turns, *numbers = map(torch.as_tensor, run())
    turn_NT, *tensors = credit_speed.vectorised(case)
    assert torch.equal(turns, turn_NT)
    for rows, tensor in zip(numbers, tensors, strict=True):
        torch.testing.assert_close(rows, tensor, atol=1e-5, rtol=0)


def test_plain_turns_and_sums_worked_out_by_hand():
    mask = [[1, 1, 0, 0, 1, 0], [0, 1, 1]]
    blank = [[0] * 6, [0] * 3]
    assert credit_speed.plain_turns(mask, blank) == [[0, 0, -1, -1, 1, -1], [-1, 0, 0]]
    # 2 and 1: three over the root of two terms, then one alone; the turn without a score adds no term.
    assert credit_speed.plain_sums([2.0, float("nan"), 1.0]) == pytest.approx([3 / 2**0.5, 0.0, 1.0])


def test_recording_bench_records_one_step_of_each_pair_and_prints_the_cost(capsys, tmp_path):
    small = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1", "--seed", "3"]
    small += ["--task_kwargs", '{"train_questions": 8, "test_questions": 1}']
    cost = recording_cost.measure(["--config", "quickstart", *small], pairs=3, seed=0, folder=str(tmp_path))
    assert len(cost.clock.without) == len(cost.clock.recorded) == len(cost.processor.recorded) == 3
    # One of each pair, including the warm-up pair. All steps do the same work.
    steps = [int(file.name.split("-")[1]) - 1 for file in sorted(tmp_path.glob("rollouts/step-*"))]
    assert [step // 2 for step in steps] == [0, 1, 2, 3] and len({step % 2 for step in steps}) == 2
    texts = {file.read_text().partition('"rewards"')[0] for file in tmp_path.glob("rollouts/step-*")}
    assert len(texts) == 1 and cost.bytes_of_step > 1000 and 0 < cost.inside < max(cost.processor.recorded)
    assert recording_cost.main(["quickstart", "--pairs", "2", *small]) == 0
    assert len(cells(capsys.readouterr().out, "processor")) == 8


def test_recording_cost_worked_out_by_hand():
    # Ratios 1.2, 1.1 and 0.9: the median is 1.1, and a fifth of a tenth is 0.02.
    pairs = recording_cost.Pairs(without=[1.0, 2.0, 1.0], recorded=[1.2, 2.2, 0.9])
    assert pairs.ratio() == pytest.approx(1.1) and pairs.ratio(every=5) == pytest.approx(1.02)
    cost = recording_cost.Cost(pairs, pairs, inside=0.05, bytes_of_step=1)  # of a second
    assert cost.share() == pytest.approx(0.05) and cost.share(every=5) == pytest.approx(0.01)


def test_tool_bench_prints_both_times_and_that_rollouts_are_equal(capsys):
    assert tool_loop.main(TINY_TOOLS) == 0
    output = capsys.readouterr().out
    assert "token ids and masks: equal" in output and "0.1 s a turn at least" in output
    # The fastest turn: concurrent calls take 0.1 s, and calls one after the other 5 * 0.1.
    assert 0.1 <= float(cells(output, "ours")[2])
    assert 0.5 <= float(cells(output, "TRL")[2])


def test_tool_bench_times_each_tool_turn_within_the_concurrency_limit():
    found = tool_loop.measure(tool_loop.Load(rollouts=4, turns=3, tool_seconds=0.1, concurrency=2))
    assert {way: len(timings) for way, timings in found.timings.items()} == {"ours": 3, "TRL": 3}
    assert min(found.timings["ours"]) >= 0.2  # 2 at a time: 4 calls take 2 * 0.1 s
    assert found.differences == []
    assert tool_loop.Load(rollouts=64, turns=1, tool_seconds=0.5, concurrency=10).least_seconds == 7 * 0.5


def test_tool_bench_plays_every_turn_of_the_script(tmp_path):
    way = tool_loop.make_ways(tool_loop.Load(2, 2, 0.0, 2), tool_loop.slow_search(lambda: None), str(tmp_path))
    batch, _ = way["TRL"].roll_out(2)
    tokenizer = way["TRL"].script._tokenizer
    first, second = tokenizer.batch_decode(batch["completion_ids"])
    assert first.count("<tool_call>") == first.count("<tool_response>") == 2
    assert "question 0 of 1" in second and "question 1 of 1" in second and "<answer>1</answer>" in second
    written = tokenizer.decode(batch["completion_ids"][0][batch["tool_mask"][0] == 1])
    assert written.count("<tool_call>") == 2 and "<tool_response>" not in written
    way["ours"].close()


def test_tool_bench_fails_if_the_two_ways_give_different_rollouts(capsys, monkeypatch):
    monkeypatch.setattr(
        ControlText, "encode", lambda self, messages, right=ControlText.encode: (right(self, messages)[0][1:], False)
    )
    assert tool_loop.main([*TINY_TOOLS, "--tool-ms", "1"]) == 1
    captured = capsys.readouterr()
    assert "disagree in completion_ids" in captured.err and "tool_mask" in captured.err
    assert "prompt_ids" not in captured.err and "equal" not in captured.out
