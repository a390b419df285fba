"""Means over questions, their intervals, and the table that shows them."""

import pytest
from rich.console import Console

from a2tgpo_trl.report.scores import Estimate, Scores, bootstrap, interval, markdown, score, score_table


def record(row: int, hops: int = 2, turns: int = 1, **rewards: float | None) -> dict:
    return {"row": row, "hops": hops, "tool_turns": turns, "rewards": rewards}


def test_wilsons_interval_of_eight_of_ten():
    # z = 1.96, z2 = 3.8415: centre (0.8 + 0.19207) / 1.38415 = 0.71674,
    # half 1.96 / 1.38415 * sqrt(0.016 + 0.0096) = 0.22657
    found = interval([1.0] * 8 + [0.0] * 2, share=True)
    assert (found.mean, found.number) == (0.8, 10)
    assert found.low == pytest.approx(0.4902, abs=1e-4) and found.high == pytest.approx(0.9433, abs=1e-4)


def test_wilson_interval_of_three_out_of_three():
    # 3 of 3: low = 1 / (1 + z2 / 3) = 0.4385
    found = interval([1.0] * 3, share=True)
    assert (found.mean, found.high) == (1.0, 1.0) and found.low == pytest.approx(0.4385, abs=1e-4)


def test_where_none_or_all_are_right_the_mean_is_in_its_interval():
    # Through rounding, the lower end of 0 of 10 was 1e-17, and a picture cannot draw a bar of negative length.
    for number in range(1, 400):
        for right in (0.0, 1.0):
            found = interval([right] * number, share=True)
            assert found.low <= found.mean <= found.high


def test_non_share_scores_get_a_bootstrap_interval():
    values = [0.0, 0.5, 1.0, 0.5] * 100
    found = interval(values, share=False)
    # Standard error: sqrt(0.125 / 400) = 0.01768; 1.96 of them are 0.0346. The ends of 2,000 draws are noisy.
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.4654, abs=0.004) and found.high == pytest.approx(0.5346, abs=0.004)
    assert found == interval(values, share=False)


def test_rollouts_of_one_question_are_one_sample():
    found = score([record(0, exact_match=1.0), record(0, exact_match=0.0), record(1, exact_match=1.0)])
    assert found["exact_match"].mean == 0.75 and found["exact_match"].number == 2


def test_number_of_turns_gets_no_share_interval():
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
    some = Scores.of([record(0, None, exact_match=1.0), record(1, 3, exact_match=0.0), record(2, 2)], "hops")
    assert list(some.groups) == ["hops 2", "hops 3", "hops None"]


def test_a_column_may_have_the_name_of_a_key_of_the_record():
    records = [
        {**record(row, exact_match=right), "group": 7, "columns": {"group": name, "turns": turns}, "turns": []}
        for row, (name, turns, right) in enumerate([("easy", 2, 1.0), ("hard", 3, 0.0), ("hard", 2, 0.0)])
    ]
    scores = Scores.of(records, "group", {"short": {"turns": [2]}, "long": {"turns": [3], "hops": [2]}})
    assert list(scores.groups) == ["group easy", "group hard"]
    assert {name: row["exact_match"].mean for name, row in scores.averages.items()} == {"short": 0.5, "long": 0.0}


def test_values_of_several_kinds_have_an_order():
    records = [record(row, value, exact_match=1.0) for row, value in enumerate(["b", None, 10, "a", 2.5, True])]
    assert [*Scores.of(records, "hops").groups] == [f"hops {value}" for value in (True, 2.5, 10, "a", "b", None)]


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
    assert str(Estimate(0.5, 0.5, 0.5, 1)) == "0.500"  # a single run has no interval
    assert str(Estimate(1.0, 0.207, 1.0, 1)) == "1.000 (0.207 to 1.000)"  # a single question has one


def asked(row: int, name: str, calls: int, right: float) -> dict:
    turns = [{"calls": [{"made": True}] * calls}, {"calls": [{"made": False}]}]  # one that could not be parsed
    return {"row": row, "set": name, "tool_turns": int(calls > 0), "turns": turns, "rewards": {"exact_match": right}}


# Ten questions of one set, of which 2 are right with one call each; two of another, both right with two calls each.
TWO_SETS = [
    *(asked(i, "large", 1, float(i < 2)) for i in range(10)),
    *(asked(i, "small", 2, 1.0) for i in (10, 11)),
]
AVERAGES = {"both": {"set": ["large", "small"]}, "one": {"set": ["small"]}, "none": {"set": ["other"]}}


def test_averages_weigh_by_questions_or_each_set_alike():
    scores = Scores.of(TWO_SETS, "set", AVERAGES)
    # By questions 4 / 12; the sets' means are 2 / 10 and 1, and their mean is 0.6. A single set has no such mean.
    assert scores.averages["both"]["exact_match"].mean == pytest.approx(4 / 12)
    assert scores.plain["both, each set alike"]["exact_match"].mean == pytest.approx(0.6)
    assert list(scores.averages) == ["both", "one"] and list(scores.plain) == ["both, each set alike"]


def test_interval_of_the_mean_of_sets_is_drawn_within_each_set():
    plain = Scores.of(TWO_SETS, "set", AVERAGES).plain["both, each set alike"]["exact_match"]
    # The small set is right in every draw: half of what is drawn from the large one, 0.2 +- 1.96 * 0.1265, to tenths.
    large = bootstrap([[(float(i < 2), 1.0) for i in range(10)]])
    assert plain.low == pytest.approx(0.5 + large.low / 2, abs=0.051)
    assert plain.high == pytest.approx(0.5 + large.high / 2, abs=0.051) and plain.high < 1.0


def test_right_answers_per_call_are_all_right_ones_over_all_calls():
    scores = Scores.of(TWO_SETS, "set", AVERAGES)
    # Large: 2 of 10 calls. Small: 2 of 4. Both: 4 of 14; alike: (0.2 + 0.5) / 2.
    assert scores.everything["tool calls"].mean == pytest.approx(14 / 12)
    assert scores.everything["right answers per call"].mean == pytest.approx(4 / 14)
    assert scores.groups["set small"]["right answers per call"] == Estimate(0.5, 0.5, 0.5, 2)
    assert scores.plain["both, each set alike"]["right answers per call"].mean == pytest.approx(0.35)


def test_right_answers_per_call_needs_known_calls():
    found = score([asked(0, "large", 0, 1.0), asked(1, "large", 0, 0.0)])
    assert found["tool calls"].mean == 0.0 and "right answers per call" not in found
    own_loop = {**asked(0, "large", 1, 1.0), "turns": [{"calls": None}]}
    assert "tool calls" not in score([own_loop])
    # One of two questions calls: draws without it have no ratio, the others 1 / 1 or 0 / 2.
    few = score([asked(0, "large", 1, 0.0), asked(1, "large", 0, 1.0)])["right answers per call"]
    assert (few.mean, few.low, few.high) == (1.0, 0.0, 1.0)


def test_draws_of_many_questions_take_little_memory():
    import tracemalloc

    # As many questions as the seven sets have. Drawn one by one: 50,000 x 2,000 numbers of 8 bytes, 800 MB.
    pairs = [(float(i % 3 == 0), 1.0) for i in range(50_000)]
    tracemalloc.start()
    estimate = bootstrap([pairs])
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    # sqrt(1 / 3 * 2 / 3 / 50,000) = 0.0021, times 1.96 = 0.0041
    assert estimate.low == pytest.approx(1 / 3 - 0.0041, abs=4e-4)
    assert estimate.high == pytest.approx(1 / 3 + 0.0041, abs=4e-4)


def test_the_markdown_has_a_line_for_each_group_and_a_column_for_each_score():
    lines = markdown(Scores.of(TWO_SETS, "set", AVERAGES), "a|b: 12 questions").splitlines()
    head, rule, *body = lines[4:]
    assert head.split(" | ")[2:] == ["exact match", "tool turns", "tool calls", "right answers per call |"]
    assert {line.count("|") for line in (head, rule, *body)} == {7}
    labels = [line.split(" | ")[0].removeprefix("| ") for line in body]
    assert labels == ["all", "set large", "set small", "both", "one", "both, each set alike"]
    assert body[2].split(" | ")[1:3] == ["2", "1.000 (0.342 to 1.000)"]
