"""Means over questions, their intervals, and the table that shows them."""

import pytest
from rich.console import Console

from a2tgpo_trl.report.scores import Estimate, Scores, interval, score, score_table


def record(row: int, hops: int = 2, turns: int = 1, **rewards: float | None) -> dict:
    return {"row": row, "hops": hops, "tool_turns": turns, "rewards": rewards}


def test_wilsons_interval_of_eight_of_ten():
    # z = 1.96, z2 = 3.8415: centre (0.8 + 0.19207) / 1.38415 = 0.71674,
    # half 1.96 / 1.38415 * sqrt(0.016 + 0.0096) = 0.22657
    found = interval([1.0] * 8 + [0.0] * 2, share=True)
    assert (found.mean, found.number) == (0.8, 10)
    assert found.low == pytest.approx(0.4902, abs=1e-4) and found.high == pytest.approx(0.9433, abs=1e-4)


def test_an_interval_stays_honest_where_all_are_right():
    # 3 of 3: low = 1 / (1 + z2 / 3) = 0.4385
    found = interval([1.0] * 3, share=True)
    assert (found.mean, found.high) == (1.0, 1.0) and found.low == pytest.approx(0.4385, abs=1e-4)


def test_other_scores_get_percentiles_of_means_over_drawn_questions():
    values = [0.0, 0.5, 1.0, 0.5] * 100
    found = interval(values, share=False)
    # Standard error: sqrt(0.125 / 400) = 0.01768; 1.96 of them are 0.0346. The draws are 2,000, so the ends are noisy.
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.4654, abs=0.004) and found.high == pytest.approx(0.5346, abs=0.004)
    assert found == interval(values, share=False)


def test_rollouts_of_one_question_are_one_sample():
    found = score([record(0, exact_match=1.0), record(0, exact_match=0.0), record(1, exact_match=1.0)])
    assert found["exact_match"].mean == 0.75 and found["exact_match"].number == 2


def test_a_number_of_turns_is_no_share_even_if_each_is_one():
    # As a share, 3 of 3 would have reached down to 0.44.
    found = score([record(i, exact_match=1.0) for i in range(3)])
    assert found["tool turns"] == Estimate(1.0, 1.0, 1.0, 3) and found["exact_match"].low < 0.5


def test_a_reward_that_a_rollout_did_not_get_is_left_out_of_its_mean():
    found = score([record(0, exact_match=1.0, f1=None), record(1, exact_match=0.0, f1=0.5)])
    assert found["f1"].mean == 0.5 and found["f1"].number == 1


def test_scores_have_a_group_for_each_value_of_the_column():
    scores = Scores.of([record(0, 2, exact_match=1.0), record(1, 3, exact_match=0.0)], "hops")
    assert list(scores.groups) == ["hops 2", "hops 3"]
    assert scores.groups["hops 3"]["exact_match"].mean == 0.0
    assert Scores.of([record(0, exact_match=1.0)], None).groups == {}


def test_the_table_has_a_column_for_each_evaluation_and_fits_a_terminal():
    scores = Scores.of([record(i, 2 + i % 3, turns=2, exact_match=1.0, answer_format=-0.5) for i in range(30)], "hops")
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))
    console.print(score_table({"before": scores, "after": scores}, "30 questions"))
    text = console.export_text()
    assert "exact match" in text and "hops 4" in text and "answer format" in text
    assert text.count("1.000 (0.886 to 1.000)") == 2
    assert "…" not in text


def test_an_estimate_reads_as_mean_and_interval():
    assert str(Estimate(0.5, 0.25, 0.75, 10)) == "0.500 (0.250 to 0.750)"
