"""Which questions a corpus can answer at all: by what is found, in a file, and in the task that reads it."""

import json

import pytest
from qa_files import RIVERS, ROWS, write_rows, write_sets

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.search.corpus import Passage
from a2tgpo_trl.tasks.qa.answerable import is_answerable, read_answerable
from a2tgpo_trl.tasks.qa.questions import Question
from a2tgpo_trl.tasks.qa.task import qa


HAMLETS = 5  # of the twelve, of which the corpus says who was born there


def question(*answers: str, titles: tuple[str, ...] = ()) -> Question:
    return Question("hotpotqa", "dev_0", "Which?", answers, titles, "dev.jsonl, line 1")


def passage(text: str, title: str = "") -> Passage:
    return Passage("0", title, f'"{title}"\n{text}' if title else text)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sets, and the index of a corpus that tells of all bridges and of some builders."""
    folder = tmp_path_factory.mktemp("world")
    bridges = [{"title": f"{river} Bridge", "text": f"Built by Mason {i}."} for i, river in enumerate(RIVERS)]
    builders = [{"title": f"Mason {i}", "text": f"Born in Hamlet {i}, they say."} for i in range(HAMLETS)]
    write_rows(folder / "corpus.jsonl", [*bridges, *builders])
    assert cli(["serve-search", "--corpus", str(folder / "corpus.jsonl"), "--build"]) == 0
    return write_sets(folder / "sets"), folder / "corpus.jsonl.bm25"


@pytest.fixture(scope="module")
def file(world, tmp_path_factory):
    folder, index = world
    made = tmp_path_factory.mktemp("made") / "answerable.jsonl"
    words = ["--sets", "hotpotqa", "nq", "--train", "hotpotqa", "--folder", str(folder), "--index", str(index)]
    assert cli(["answerable", *words, "--top-k", "1", "-o", str(made)]) == 0
    return made


def test_an_accepted_answer_is_found_by_whole_words():
    found = [passage("The bridge of 1815, by A. Mason.")]
    assert is_answerable(question("in 1799", "1815"), found, [])
    assert is_answerable(question("the a mason"), found, [])
    assert not is_answerable(question("181"), found, [])
    assert is_answerable(question("Enza"), [passage("a bridge")], [[passage("nothing")], [passage("spans the Enza")]])
    assert not is_answerable(question("Enza"), [], [])


def test_yes_and_no_are_answerable_where_each_supporting_title_is_found():
    both = question("no", titles=("Enza Bridge", "Mason 3"))
    # That some passage has the word "no" says nothing.
    assert not is_answerable(both, [passage("there is no bridge")], [[passage("x", "Enza Bridge")], []])
    assert is_answerable(both, [], [[passage("x", "enza bridge")], [passage("y", "Mason 4"), passage("z", "Mason 3")]])
    assert not is_answerable(question("yes"), [passage("yes")], [])


def test_the_command_says_it_of_each_question_of_the_sets(file, capsys):
    known = read_answerable(file)
    # HotpotQA's titles lead to the builder, where the corpus has one; NQ has none, and its question finds the bridge.
    assert len(known) == 3 * ROWS
    for split in ("dev", "train"):
        assert [known["hotpotqa", f"{split}_{i}"] for i in range(ROWS)] == [i < HAMLETS for i in range(ROWS)]
    assert not any(known["nq", f"test_{i}"] for i in range(ROWS))
    assert not file.with_name("answerable.jsonl.part").exists()


def test_the_task_scores_them_apart_and_trains_on_what_can_be_answered(world, file):
    folder, _ = world
    task = qa(sets="hotpotqa", folder=folder, answerable=file)
    assert task.test_dataset["answerable"][:] == [i < HAMLETS for i in range(ROWS)]
    assert len(task.train_dataset) == ROWS
    assert task.averages["multi-hop, answerable"] == {"set": ["hotpotqa"], "answerable": [True]}
    assert task.averages["multi-hop, not answerable"] == {"set": ["hotpotqa"], "answerable": [False]}
    only = qa(sets="hotpotqa", folder=folder, answerable=file, answerable_only=True)
    assert only.train_dataset["id"][:] == [f"train_{i}" for i in range(HAMLETS)]
    assert len(only.test_dataset) == ROWS


def test_a_file_that_says_nothing_of_a_question_or_nothing_at_all_is_refused(world, file, tmp_path):
    folder, _ = world
    with pytest.raises(ValueError, match=r"nothing is said of popqa test_0 \(.*line 1\). Make the file"):
        qa(sets="popqa", train="hotpotqa", folder=folder, answerable=file)
    with pytest.raises(ValueError, match="nothing is said of nq train_0"):
        qa(sets="nq", folder=folder, answerable=file, answerable_only=True)
    with pytest.raises(ValueError, match="answerable_only needs the file"):
        qa(sets="nq", folder=folder, answerable_only=True)
    with pytest.raises(ValueError, match="there is no file .*To make it: a2tgpo answerable"):
        qa(sets="nq", folder=folder, answerable=tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="none of the questions to train on is answerable"):
        nothing = [{"set": "hotpotqa", "id": f"train_{i}", "answerable": False} for i in range(ROWS)]
        qa(folder=folder, answerable=write_rows(tmp_path / "nothing.jsonl", nothing), answerable_only=True)
    for line, message in (
        ("[]", r"line 1 holds \[\], not an object with set, id"),
        ("{", "line 1 is not JSON"),
        (json.dumps({"set": "nq"}), "line 1 is not an object with set, id and answerable"),
    ):
        (tmp_path / "bad.jsonl").write_text(line + "\n")
        with pytest.raises(ValueError, match=message):
            qa(sets="nq", folder=folder, answerable=tmp_path / "bad.jsonl")


def test_a_search_that_cannot_be_asked_is_an_error_and_leaves_no_file(world, tmp_path, capsys):
    folder, index = world
    words = ["answerable", "--sets", "nq", "--folder", str(folder), "-o", str(tmp_path / "out.jsonl")]
    assert cli([*words, "--url", "http://127.0.0.1:1"]) == 2
    assert "does not answer" in capsys.readouterr().err
    assert cli([*words, "--index", str(index), "--top-k", "0"]) == 2
    assert cli([*words, "--index", str(index), "--top-k", "1000"]) == 2
    assert "1000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
