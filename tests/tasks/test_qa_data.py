"""The seven sets: sizes that add up, questions read in full, leaks found, and errors that say where and what to do."""

import json
import logging

import pytest
from datasets import Dataset
from qa_files import ROWS, row, write_rows, write_sets

from a2tgpo_trl.tasks.qa.leakage import leaked, without_leaks
from a2tgpo_trl.tasks.qa.questions import load_split, read_question
from a2tgpo_trl.tasks.qa.sets import SETS, named, trained_on


GOOD = {"id": "dev_0", "question": "Who built it?", "golden_answers": ["Ada"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("qa"))


def asked(text: str, where: str = "there"):
    return read_question("nq", {**GOOD, "question": text}, where)


# ---- the sets


def test_test_set_sizes_add_up_to_those_of_the_paper():
    # 7,405 + 12,576 + 2,417 + 125 = 22,523, and 3,610 + 11,313 + 14,267 = 29,190.
    totals = {
        hops: sum(one.sizes[one.test] for one in SETS.values() if one.hops == hops)
        for hops in ("multi-hop", "single-hop")
    }
    assert totals == {"multi-hop": 22_523, "single-hop": 29_190}


def test_set_sizes_reproduce_the_weighted_averages_of_the_paper():
    # DAPO on Qwen3-4B: 45.95, 51.81, 21.68, 51.20 -> 46.65, and 47.50, 65.84, 51.03 -> 56.33.
    cells = dict(zip(SETS, (45.95, 51.81, 21.68, 51.20, 47.50, 65.84, 51.03), strict=True))
    for kind, printed in (("multi-hop", 46.65), ("single-hop", 56.33)):
        sizes = {name: SETS[name].sizes[SETS[name].test] for name in named(kind)}
        average = sum(cells[name] * size for name, size in sizes.items()) / sum(sizes.values())
        assert round(average, 2) == printed


def test_sets_are_named_one_by_one_or_by_their_kind():
    assert named("nq") == ["nq"]
    assert named(["nq", "multi-hop", "hotpotqa"]) == ["nq", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"]
    assert named("single-hop") == ["nq", "triviaqa", "popqa"]
    with pytest.raises(ValueError, match="There is no set 'hotpot'. Did you mean 'hotpotqa'"):
        named("hotpot")


def test_the_paper_trains_on_one_set_of_each_kind():
    assert trained_on(["bamboogle", "musique"]) == ["hotpotqa"]
    assert trained_on(["bamboogle", "popqa"]) == ["hotpotqa", "nq"]


# ---- reading


@pytest.mark.parametrize("name", SETS)
def test_each_split_is_read_from_its_file_with_all_answers_and_supporting_titles(name, folder):
    for split in SETS[name].sizes:
        found = load_split(name, split, folder)
        assert len(found) == ROWS
        assert found[3].text == row(name, split, 3)["question"] and found[3].id == f"{split}_3"
        assert found[3].answers == ("Hamlet 3", "the hamlet 3")
        with_titles = name in ("hotpotqa", "2wikimultihopqa", "musique")
        assert found[3].titles == (("Dyle Bridge", "Mason 3") if with_titles else ())
        assert found[3].where == f"{folder / name / split}.jsonl, line 4"


def test_the_hub_gives_the_same_questions_as_the_files(folder, monkeypatch):
    def load_dataset(name, config, split):
        assert (name, config, split) == ("RUC-NLPIR/FlashRAG_datasets", "musique", "dev")
        return Dataset.from_json(str(folder / config / f"{split}.jsonl"), cache_dir=str(folder / "cache"))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    of_hub, of_file = load_split("musique", "dev"), load_split("musique", "dev", folder)
    assert of_hub[2].where == "RUC-NLPIR/FlashRAG_datasets, musique, dev, row 3"
    assert [(q.id, q.text, q.answers, q.titles) for q in of_hub] == [
        (q.id, q.text, q.answers, q.titles) for q in of_file
    ]


def test_missing_connection_names_the_download_command():
    # The tests are offline (tests/conftest.py), so the hub cannot be reached.
    with pytest.raises(ValueError, match="bamboogle could not be loaded") as error:
        load_split("bamboogle", "test")
    assert "hf download RUC-NLPIR/FlashRAG_datasets --repo-type dataset --include 'bamboogle/*'" in str(error.value)
    assert "task_kwargs: {folder: FOLDER}" in str(error.value)


def test_unexpected_set_size_warns_or_is_refused_with_whole(folder, caplog):
    load_split("nq", "test", folder)
    assert "nq has 12 questions in the split 'test', instead of 3,610" in caplog.text
    with pytest.raises(ValueError, match="nq has 12 questions .* instead of 3,610.*whole: false"):
        load_split("nq", "test", folder, whole=True)


def test_expected_set_size_does_not_warn(tmp_path, caplog):
    rows = [row("bamboogle", "test", i % ROWS) for i in range(125)]
    write_rows(tmp_path / "bamboogle" / "test.jsonl", rows)
    assert len(load_split("bamboogle", "test", tmp_path, whole=True)) == 125 and not caplog.text


def test_missing_metadata_is_accepted_and_blank_aliases_are_dropped():
    assert read_question("nq", GOOD, "there").titles == ()
    assert read_question("nq", {**GOOD, "metadata": None}, "there").titles == ()
    unified = {"supporting_facts": None, "question_decomposition": None}  # as `datasets` fills in what is missing
    assert read_question("nq", {**GOOD, "metadata": unified}, "there").titles == ()
    assert read_question("nq", {**GOOD, "golden_answers": " Ada "}, "there").answers == ("Ada",)
    assert read_question("nq", {**GOOD, "golden_answers": ["", "Ada"]}, "there").answers == ("Ada",)


# ---- bad input


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "dev_1", "question": ', "is not JSON: .*Fix or remove it"),
        ('["dev_1"]', "holds \\['dev_1'\\], not an object with id, question, golden_answers"),
        ("[" * 100_000, "is not JSON"),
        ({"id": "a", "question": "Who?"}, "there is no 'golden_answers'; there is id, question"),
        (
            {**GOOD, "golden_answers": None},
            "golden_answers is None, not a list of strings. Write each accepted answer",
        ),
        ({**GOOD, "golden_answers": 1969}, "golden_answers is 1969, not a list of strings"),
        ({**GOOD, "golden_answers": [1969]}, "1969 among golden_answers is not a string"),
        ({**GOOD, "golden_answers": [["Ada"]]}, "\\['Ada'\\] among golden_answers is not a string"),
        ({**GOOD, "golden_answers": {"Ada": 1}}, "golden_answers is {'Ada': 1}, not a list"),
        ({**GOOD, "golden_answers": []}, "golden_answers is \\[\\]: there is no answer to score"),
        ({**GOOD, "golden_answers": [" "]}, "golden_answers is .*: there is no answer to score"),
        ({**GOOD, "question": "  "}, "the question is '  '. Fill it in, or remove the line"),
        ({**GOOD, "question": None}, "the question is None"),
        ({**GOOD, "metadata": {"supporting_facts": ["Ada"]}}, "the supporting titles in metadata cannot be read"),
        ({**GOOD, "metadata": "{}"}, "the supporting titles in metadata cannot be read"),
    ],
)
def test_a_bad_line_is_an_error_that_names_file_and_line(line, said, tmp_path):
    text = line if isinstance(line, str) else json.dumps(line)
    file = write_rows(tmp_path / "nq" / "test.jsonl", [GOOD])
    with file.open("a") as more:
        more.write(f"\n{text}\n")
    with pytest.raises(ValueError, match=f"test.jsonl, line 3:? {said}"):
        load_split("nq", "test", tmp_path)


def test_undecodable_line_is_an_error_naming_the_line(tmp_path):
    file = write_rows(tmp_path / "nq" / "test.jsonl", [GOOD])
    file.write_bytes(file.read_bytes() + b'{"id": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        load_split("nq", "test", tmp_path)


def test_missing_files_are_named_with_existing_ones_and_how_to_fetch(tmp_path):
    with pytest.raises(ValueError, match="There is no folder .*nowhere. It must hold nq/test.jsonl"):
        load_split("nq", "test", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no SET/SPLIT.jsonl"):
        load_split("nq", "test", tmp_path)
    write_rows(tmp_path / "nq" / "train.jsonl", [GOOD])
    with pytest.raises(ValueError, match="there are nq/train.jsonl.\nTo fetch it: hf download"):
        load_split("nq", "test", tmp_path)
    with pytest.raises(ValueError, match="popqa has no split 'train'; it has test"):
        load_split("popqa", "train", tmp_path)
    write_rows(tmp_path / "nq" / "test.jsonl", [])
    with pytest.raises(ValueError, match="it is empty"):
        load_split("nq", "test", tmp_path)


# ---- leakage


def test_questions_with_equal_normalised_words_count_as_leaked():
    train = [asked("Who wrote the Iliad?", "train 1"), asked("Who wrote it?", "train 2"), asked("???", "train 3")]
    test = [asked("who wrote  Iliad", "test 1"), asked("Who wrote an Iliad!", "test 2"), asked("!!!", "test 3")]
    # Both test questions are the first training question; the first is reported. "???" and "!!!" have no words.
    assert [(one.where, other.where) for one, other in leaked(train, test)] == [("train 1", "test 1")]
    assert leaked([asked("???")], [asked("???")])


def test_leaked_questions_are_reported_and_left_out_kept_or_refused(caplog):
    train = [asked(f"Question {i}?", f"train {i}") for i in range(10)]
    test = [asked(f"question {i}", f"test {i}") for i in range(7)]
    with caplog.at_level(logging.WARNING):
        kept = without_leaks(train, test, "leave_out")
    assert [question.where for question in kept] == ["train 7", "train 8", "train 9"]
    assert "7 of 10 training questions are also test questions" in caplog.text
    assert "train 0 is test 0: Question 0?" in caplog.text and "and 2 more" in caplog.text
    assert without_leaks(train, test, "keep") == train and "They are trained on." in caplog.text
    with pytest.raises(ValueError, match="leakage: leave_out"):
        without_leaks(train, test, "refuse")
    with pytest.raises(ValueError, match="leakage must be one of leave_out, refuse, keep; got 'leave'"):
        without_leaks(train, test, "leave")


def test_no_warning_without_leaked_questions(caplog):
    train = [asked("Who?")]
    assert without_leaks(train, [asked("Where?")], "refuse") == train and not caplog.text
