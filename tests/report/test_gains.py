"""Gains by what a turn found: the names of turns, means by hand, intervals over questions."""

import json
from pathlib import Path

import pytest

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.report.gains import AGAIN, ANSWER, FACT, NOTHING, WITH, WITHOUT, gained_turns, gains_of
from a2tgpo_trl.rollout.records import write_jsonl


NEEDED = ["The capital of Kenya is Nairobi.", "The currency of Kenya is Kenyan shillings."]


def turn(query: str, result: str) -> dict:
    return {"calls": [{"name": "search", "arguments": {"query": query}, "result": result}]}


def record(row: int, gains: list, *turns: dict, answer="Kenyan shillings", **more) -> dict:
    ends = {"calls": []}
    return {"row": row, "rewards": {}, "answer": answer, "gains": gains, "turns": [*turns, ends], **more}


FOUR_TURNS = record(
    0,
    [0.5, -0.1, 2.0, 0.2],
    turn("Nairobi", f"{NEEDED[0]}\nThe capital of Peru is Lima."),
    turn("Nairobi", f"{NEEDED[0]}\nThe capital of Peru is Lima."),
    turn("currency Kenya", NEEDED[1]),
    turn("money Kenya", NEEDED[1]),
    needed=NEEDED,
)


def names(*records: dict) -> list[tuple[str, str]]:
    return [one.names for one in gained_turns(records)]


def test_turns_are_classified_by_what_they_found():
    assert names(FOUR_TURNS) == [(WITHOUT, FACT), (WITHOUT, AGAIN), (WITH, ANSWER), (WITH, NOTHING)]


@pytest.mark.parametrize(
    ("answer", "result", "holds"),
    [
        ("Oslo", "The capital is oslo.", True),
        ("Oslo", "They live by Oslofjord.", False),
        (".at", "The internet code of Austria is .at.", True),
        (".at", "They live at home.", False),
        (["euros", "EUR"], "Prices are in EUR", True),
    ],
)
def test_an_answer_is_in_a_result_as_whole_words_and_with_its_marks(answer, result, holds):
    assert names(record(0, [1.0], turn("a", result), answer=answer))[0][0] == (WITH if holds else WITHOUT)


def test_rollout_function_turns_are_classified_by_the_text_they_read():
    read = {"calls": None, "text": "search Kenya", "read": NEEDED[1]}
    assert names(record(0, [1.0, 0.0], read, read)) == [(WITH, ANSWER), (WITH, NOTHING)]


def test_unknown_gain_is_left_out():
    assert names(record(0, [None, 1.0], turn("a", "b"), turn("c", "d"))) == [(WITHOUT, NOTHING)]


def test_gain_means_worked_out_by_hand():
    # With the answer 2.0, 0.2 and 1.0, without 0.5 and -0.1: 3.2 / 3 less 0.4 / 2.
    found = gains_of([FOUR_TURNS, record(1, [1.0], turn("a", NEEDED[1]))])
    assert found.means[WITH].mean == pytest.approx(3.2 / 3) and found.means[WITH].number == 3
    assert found.means[WITHOUT].mean == pytest.approx(0.2) and found.means[FACT].mean == 0.5
    assert found.difference is not None and found.difference.mean == pytest.approx(3.2 / 3 - 0.2)
    assert found.means[ANSWER].mean == pytest.approx(1.5) and found.means[AGAIN].number == 1


def test_the_interval_is_over_questions_and_not_over_turns():
    # 20 questions, half of which gain 1 in each of many turns: the deviation of the mean is sqrt(0.25 / 20) = 0.11 for
    # any number of turns.
    for turns in (1, 9):
        records = [record(row, [float(row % 2)] * turns, *[turn("a", "b")] * turns) for row in range(20)]
        means = gains_of(records).means
        low, high = min(one.low for one in means.values()), max(one.high for one in means.values())
        assert 0.25 < low < 0.32 and 0.68 < high < 0.75


def test_gains_command_prints_evaluations_side_by_side_or_as_json(tmp_path, capsys):
    for name, gain in (("float32", 2.0), ("bfloat16", 1.5)):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "rollouts.jsonl", [record(0, [gain, 0.0], turn("a", NEEDED[1]), turn("b", "c"))])
    folders = [str(tmp_path / name) for name in ("float32", "bfloat16")]
    assert cli(["gains", *folders, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [told[folder]["difference"]["mean"] for folder in folders] == [2.0, 1.5]
    assert cli(["gains", *folders]) == 0
    assert "2.000 (2.000 to 2.000)" in capsys.readouterr().out


def test_rollouts_without_gains_say_how_to_get_some(tmp_path, capsys):
    file = tmp_path / "rollouts.jsonl"
    plain = record(0, [])
    del plain["gains"]
    toolless = {key: value for key, value in record(0, []).items() if key != "turns"}
    for rows, message in (
        ([plain], "--eval_gains true"),
        ([record(0, [])], "No turn of these rollouts called a tool"),
        ([toolless], "No turn of these rollouts called a tool"),
    ):
        write_jsonl(file, rows)
        assert cli(["gains", str(file)]) == 2
        assert message in capsys.readouterr().err


def test_answers_may_stand_in_another_column(tmp_path, capsys):
    gold = record(0, [2.0], turn("a", "in Oslo"), answer="Oslo")
    gold["gold"] = gold.pop("answer")
    write_jsonl(tmp_path / "rollouts.jsonl", [gold])
    assert cli(["gains", str(tmp_path)]) == 2
    assert "no column 'answer'" in capsys.readouterr().err
    assert cli(["gains", str(tmp_path), "--answer", "gold", "--json"]) == 0
    assert WITH in json.loads(capsys.readouterr().out)[str(tmp_path)]["means"]


def test_answers_may_stand_in_a_column_with_the_name_of_a_key_of_the_record():
    gold = record(0, [2.0], turn("a", "in Oslo"), scores=[0.5], columns={"scores": "Oslo"})
    assert [one.names[0] for one in gained_turns([gold], "scores")] == [WITH]


@pytest.mark.parametrize("answer", [7, None, [7], {"of": "Oslo"}])
def test_answers_that_are_no_text_are_told_with_their_row(answer, tmp_path, capsys):
    write_jsonl(tmp_path / "rollouts.jsonl", [record(3, [2.0], turn("a", "in Oslo"), answer=answer)])
    assert cli(["gains", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"Row 3, column 'answer', holds {answer!r}: an answer must be a string or a list of strings" in told


def test_folder_names_are_not_read_as_markup(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that the name is short, and on one line
    folder = Path("[b]run")
    folder.mkdir()
    write_jsonl(folder / "rollouts.jsonl", [record(0, [2.0], turn("a", NEEDED[1]))])
    assert cli(["gains", str(folder)]) == 0
    assert "[b]run" in capsys.readouterr().out
