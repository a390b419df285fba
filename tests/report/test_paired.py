"""Two evaluations of the same questions: the difference, its interval, and whether chance would produce it."""

import json
from math import comb

import pytest

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.report.paired import Paired, differences, mcnemar
from a2tgpo_trl.rollout.records import write_jsonl


def records(*right: float, samples: int = 1, **more) -> list[dict]:
    return [
        {
            "row": row,
            "prompt": f"question {row}",
            "answer": "yes",
            "tool_turns": 1,
            "turns": [{"calls": [{"made": True}]}],
            "rewards": {"exact_match": value, "f1": value / 2},
            **more,
        }
        for row, value in enumerate(right)
        for _ in range(samples)
    ]


@pytest.mark.parametrize(
    ("b", "c", "p"), [(1, 8, 20 / 512), (8, 1, 20 / 512), (3, 3, 1.0), (0, 0, 1.0), (0, 6, 2 / 64)]
)
def test_mcnemars_exact_test_by_hand(b, c, p):
    assert mcnemar(b, c) == p


def test_mcnemars_test_sums_the_tail_whatever_its_size():
    for b, c in ((5, 17), (40, 60), (900, 1100)):
        tail = sum(comb(b + c, i) for i in range(min(b, c) + 1))
        assert mcnemar(b, c) == pytest.approx(2 * tail / 2 ** (b + c))
    assert mcnemar(5_000, 25_000) < 1e-300


def test_the_difference_is_taken_question_by_question():
    # Both right on 2, only the first on 1, only the second on 8, neither on 9: (10 - 3) / 20 = 0.35.
    first = records(*[1.0] * 3, *[0.0] * 17)
    second = records(1.0, 1.0, 0.0, *[1.0] * 8, *[0.0] * 9)
    found = differences(first, second)
    one = found["exact_match"]
    assert (one.first, one.second, one.only_first, one.only_second) == (0.15, 0.5, 1, 8)
    assert one.difference.mean == pytest.approx(0.35) and one.p == 20 / 512
    # Deviation of a question's difference: sqrt(9 / 20 - 0.35^2) = 0.572; 1.96 x 0.572 / sqrt(20) = 0.25.
    assert one.difference.low == pytest.approx(0.10, abs=0.051) and one.difference.high == pytest.approx(
        0.60, abs=0.051
    )
    # f1 is half of it, and is not right or wrong.
    assert found["f1"].difference.mean == pytest.approx(0.175) and found["f1"].p is None
    assert "right answers per call" not in found


def test_several_rollouts_of_a_question_are_averaged_and_not_counted():
    found = differences(records(1.0, 0.0, samples=2), records(1.0, 1.0, samples=2))["exact_match"]
    assert (found.first, found.second, found.p) == (0.5, 1.0, None) and found.difference.number == 2


def test_each_value_of_a_column_is_compared_apart():
    def halves(*right: float) -> list[dict]:
        return [{**record, "set": "nq" if record["row"] < 2 else "popqa"} for record in records(*right)]

    found = Paired.of(halves(0.0, 0.0, 1.0, 1.0), halves(1.0, 0.0, 1.0, 1.0), "set")
    means = {name: scores["exact_match"].difference.mean for name, scores in found.groups.items()}
    assert means == {"set nq": 0.5, "set popqa": 0.0} and found.everything["exact_match"].difference.mean == 0.25
    assert found.groups["set nq"]["exact_match"].difference.number == 2
    with pytest.raises(ValueError, match="no column 'sets'. Did you mean 'set'"):
        Paired.of(halves(1.0), halves(1.0), "sets")


def test_grouping_column_that_differs_between_evaluations_is_refused():
    first = [{**record, "ended": ended} for record, ended in zip(records(1.0, 0.0), ("answer", "final"), strict=True)]
    with pytest.raises(ValueError, match="'ended' is not a column of the questions: the two evaluations differ in it"):
        Paired.of(first, records(1.0, 1.0, ended="answer"), "ended")
    assert list(Paired.of(first, first, "ended").groups) == ["ended answer", "ended final"]


def test_by_takes_a_column_named_like_a_record_key():
    first = [{**one, "columns": {"turns": 3 - one["row"]}} for one in records(1.0, 0.0)]
    assert list(Paired.of(first, first, "turns").groups) == ["turns 2", "turns 3"]


def test_by_sorts_mixed_values_and_refuses_lists():
    def having(*values) -> list[dict]:
        return [{**one, "set": value} for one, value in zip(records(*[1.0] * len(values)), values, strict=True)]

    for value in (["nq"], {"of": "nq"}):
        with pytest.raises(ValueError, match="Row 1 holds .*nq.* in column 'set', but questions are compared by text"):
            Paired.of(having("nq", value), having("nq", value), "set")
    found = Paired.of(having("nq", 10, 9, None), having("nq", 10, 9, None), "set")
    assert list(found.groups) == ["set 9", "set 10", "set nq", "set None"]
    some = having("nq", "popqa")
    del some[1]["set"]
    with pytest.raises(ValueError, match="The question of row 1 has no column 'set'"):
        Paired.of(some, some, "set")


def test_questions_match_despite_other_system_prompts():
    def instructed(how: str) -> list[dict]:
        messages = [{"role": "system", "content": how}, {"role": "user", "content": "Where?"}]
        return records(1.0, prompt=messages)

    assert "exact_match" in Paired.of(instructed("Think."), instructed("Search.")).everything


def test_evaluations_of_different_questions_are_refused():
    with pytest.raises(ValueError, match=r"Only one of the two evaluations has row 1 \(1 and 2 questions\)"):
        Paired.of(records(1.0), records(1.0, 0.0))
    with pytest.raises(ValueError, match="Row 0 is a different question"):
        Paired.of(records(1.0), records(1.0, answer="no"))


def test_the_command_reads_the_folders_of_two_evaluations(tmp_path, capsys):
    for name, right in (("start", [1.0, 0.0, 0.0]), ("end", [1.0, 1.0, 1.0])):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "rollouts.jsonl", records(*right, set="2wikimultihopqa"))
    words = ["paired", str(tmp_path / "start"), str(tmp_path / "end" / "rollouts.jsonl"), "--by", "set"]
    assert cli(words) == 0
    # Numbers are whole even if the terminal has only 80 characters.
    told = " ".join(capsys.readouterr().out.split())
    assert "set 2wikimultihopqa 0.333 1.000 0.667 (0.000 to 1.000) 0 and 2 0.5" in told and "…" not in told
    assert cli([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["groups"]["set 2wikimultihopqa"] == found["everything"]
    one = found["everything"]["exact_match"]
    assert (one["only_first"], one["only_second"], one["p"]) == (0, 2, 0.5)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "Name the folder of an evaluation"),
        ("", "holds no rollouts of an evaluation"),
        ('{"prompt": "q"}\n', "holds no rollouts of an evaluation"),
        ("[]\n", "holds no rollouts of an evaluation"),
        ('{"row": 0, "rewards": {}, "tool_turns": 0}\n', "line 1 has no prompt. Name the folder"),
        ('{"row": 0, "rewards": {}, "prompt": "q"}\n', "line 1 has no tool_turns. Name the folder"),
        ("{\n", "is not a file of rollouts"),
    ],
)
def test_a_folder_without_an_evaluation_is_named(content, told, tmp_path, capsys):
    if content is not None:
        (tmp_path / "rollouts.jsonl").write_text(content)
    assert cli(["paired", str(tmp_path), str(tmp_path)]) == 2
    assert told in capsys.readouterr().err and capsys.readouterr().out == ""
