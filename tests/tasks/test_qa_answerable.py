"""Which questions a corpus can answer at all: judged by what is found, in a file, and in the task that reads it."""

import json
import re

import pytest
from qa_files import RIVERS, ROWS, row, write_rows, write_sets

from a2tgpo_trl.cli import main as cli
from a2tgpo_trl.search import tool as search_tool
from a2tgpo_trl.search.corpus import Passage
from a2tgpo_trl.search.tool import SearchServerDown
from a2tgpo_trl.tasks.qa import answerable as module
from a2tgpo_trl.tasks.qa.answerable import asked_again, begin, enter, is_answerable, read_answerable, try_questions
from a2tgpo_trl.tasks.qa.questions import Question
from a2tgpo_trl.tasks.qa.task import qa


HAMLETS = 5  # of the twelve; the corpus says who was born in these


def question(*answers: str, titles: tuple[str, ...] = ()) -> Question:
    return Question("hotpotqa", "dev_0", "Which?", answers, titles, "dev.jsonl, line 1")


def passage(text: str, title: str = "") -> Passage:
    return Passage("0", title, f'"{title}"\n{text}' if title else text)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sets, and the index of a corpus about all bridges and some builders."""
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
    # An answer that normalises to nothing is searched for as it is, and not found everywhere.
    assert is_answerable(question("The The"), [passage("A band named The The.")], [])
    assert not is_answerable(question("The The"), [passage("the theatre")], [])


def test_yes_and_no_are_answerable_where_each_supporting_title_is_found():
    both = question("no", titles=("Enza Bridge", "Mason 3"))
    # A passage that contains the word "no" says nothing.
    assert not is_answerable(both, [passage("there is no bridge")], [[passage("x", "Enza Bridge")], []])
    assert is_answerable(both, [], [[passage("x", "enza bridge")], [passage("y", "Mason 4"), passage("z", "Mason 3")]])
    assert not is_answerable(question("yes"), [passage("yes")], [])


def test_requests_stay_within_the_passage_limit_of_servers():
    asked = []

    def find(queries, top_k):
        asked.append(len(queries))
        return [[passage("Enza")] for _ in queries]

    questions = [Question("nq", str(i), f"Question {i}?", ("Enza",), (), "") for i in range(70)]
    assert list(try_questions(questions, find, 100)) == [[True] * 64, [True] * 6]
    # 4,000 passages are 40 queries of 100.
    assert asked == [40, 24, 6]


def test_answerable_command_writes_a_verdict_for_each_question(file, capsys):
    known = read_answerable(file)
    # HotpotQA's titles lead to the builder, if the corpus has one; NQ has none, and its question finds the bridge.
    assert len(known) == 3 * ROWS
    for split in ("dev", "train"):
        assert [known["hotpotqa", f"{split}_{i}"] for i in range(ROWS)] == [i < HAMLETS for i in range(ROWS)]
    assert not any(known["nq", f"test_{i}"] for i in range(ROWS))
    assert [other.name for other in file.parent.iterdir()] == ["answerable.jsonl"]


def test_task_scores_answerable_questions_apart_and_can_train_on_them_alone(world, file):
    folder, _ = world
    task = qa(sets="hotpotqa", folder=folder, answerable=file)
    assert task.test_dataset["answerable"][:] == [i < HAMLETS for i in range(ROWS)]
    assert len(task.train_dataset) == ROWS
    assert task.averages["multi-hop, answerable"] == {"set": ["hotpotqa"], "answerable": [True]}
    assert task.averages["multi-hop, not answerable"] == {"set": ["hotpotqa"], "answerable": [False]}
    only = qa(sets="hotpotqa", folder=folder, answerable=file, answerable_only=True)
    assert only.train_dataset["id"][:] == [f"train_{i}" for i in range(HAMLETS)]
    assert len(only.test_dataset) == ROWS


def test_missing_or_malformed_answerable_file_is_refused(world, file, tmp_path):
    folder, _ = world
    with pytest.raises(ValueError, match=r"the file has no verdict on popqa test_0 \(.*line 1\). Make the file"):
        qa(sets="popqa", train="hotpotqa", folder=folder, answerable=file)
    with pytest.raises(ValueError, match="the file has no verdict on nq train_0"):
        qa(sets="nq", folder=folder, answerable=file, answerable_only=True)
    with pytest.raises(ValueError, match="answerable_only needs the file"):
        qa(sets="nq", folder=folder, answerable_only=True)
    with pytest.raises(ValueError, match="there is no file .*To make it: a2tgpo answerable"):
        qa(sets="nq", folder=folder, answerable=tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="according to .*, none of the training questions is answerable"):
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


# ---- what goes wrong


def test_failed_or_misconfigured_search_leaves_no_output_file(world, tmp_path, capsys):
    folder, index = world
    words = ["answerable", "--sets", "nq", "--folder", str(folder), "-o", str(tmp_path / "out.jsonl")]
    assert cli([*words, "--url", "http://127.0.0.1:1"]) == 2  # immediately: nothing has answered there yet
    assert "does not answer" in capsys.readouterr().err
    for more, told in (
        (["--top-k", "0"], "--top-k must be at least 1"),
        (["--top-k", "1000"], "1000"),
        (["--patience", "nan"], "--patience must be a number of seconds"),
        (["--output", str(tmp_path)], "--output must name a file"),
        (["--output", str(tmp_path / "none" / "out.jsonl")], "--output must name a file in an existing folder"),
        (["--train", "popqa"], "popqa has no split 'train'"),
        (["--sets", "hotpot"], "no set 'hotpot'. Did you mean 'hotpotqa'"),
    ):
        assert cli([*words, "--index", str(index), *more]) == 2
        assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_overlong_queries_and_duplicate_ids_are_named(world, tmp_path, capsys):
    _, index = world
    for rows, told in (
        ([{**row("nq", "test", 0), "question": "a" * 10_001}], "test.jsonl, line 1: A query has 10,001 characters"),
        ([row("nq", "test", 0)] * 2, "line 1 and .*line 2 both have the id 'test_0' in nq"),
    ):
        write_rows(tmp_path / "nq" / "test.jsonl", rows)
        words = ["--sets", "nq", "--folder", str(tmp_path), "--index", str(index), "-o", str(tmp_path / "out.jsonl")]
        assert cli(["answerable", *words]) == 2
        assert re.search(told, capsys.readouterr().err)


def test_unreachable_server_is_retried_until_patience_runs_out(monkeypatch):
    now, told, failures = [0.0], [], [3]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def find(queries, top_k):
        failures[0] -= 1
        if failures[0] >= 0:
            raise SearchServerDown("it is away")
        return [[]]

    search = asked_again(find, 10.0, told.append)
    # Away at 0, 1 and 3 seconds, back at 7.
    assert search(["a"], 1) == [[]] and now == [7.0]
    assert told == ["it is away. Retrying for 10 seconds."]
    failures[0] = 1000
    with pytest.raises(SearchServerDown):
        search(["a"], 1)
    assert now == [17.0]


def test_interrupted_search_resumes_and_ends_with_the_same_file(world, file, tmp_path, monkeypatch, capsys):
    folder, index = world
    passages_of = search_tool.passages_of
    asked = []

    def failing(at: int, error: BaseException):
        """An index whose request with this number fails."""

        def make(**where):
            find = passages_of(**where)

            def search(queries, top_k):
                asked.append(len(queries))
                if len(asked) == at:
                    raise error
                return find(queries, top_k)

            return search

        return make

    away = SearchServerDown("it is away")

    monkeypatch.setattr(module, "QUESTIONS_AT_ONCE", 8)
    out = tmp_path / "answerable.jsonl"
    words = ["answerable", "--sets", "hotpotqa", "nq", "--train", "hotpotqa", "--folder", str(folder)]
    words += ["--index", str(index), "--top-k", "1", "--patience", "0", "-o", str(out)]
    # 36 questions make five requests; one before them asks whether the search is there at all.
    monkeypatch.setattr(search_tool, "passages_of", failing(4, away))
    assert cli(words) == 2
    told = capsys.readouterr()
    assert "The verdicts on 16 of 36 questions are kept in" in told.err and not out.exists()
    # Cut off while a verdict was written, as by SIGKILL.
    begun = tmp_path / "answerable.jsonl.begun"
    begun.write_text(begun.read_text() + "tru")
    asked.clear()
    monkeypatch.setattr(search_tool, "passages_of", failing(3, KeyboardInterrupt()))
    assert cli([*words, "--top-k", "2"]) == 2
    assert "was started with other questions or another search" in capsys.readouterr().err
    asked.clear()
    assert cli(words) == 130
    assert "Interrupted. The verdicts so far are kept in" in capsys.readouterr().out
    asked.clear()
    monkeypatch.setattr(search_tool, "passages_of", failing(0, away))
    assert cli(words) == 0
    assert "24 questions have already been tried." in capsys.readouterr().out
    assert len(asked) == 1 + 2 and out.read_text() == file.read_text() and not begun.exists()


def test_truncated_verdict_file_is_cut_to_its_last_complete_entry(tmp_path):
    begun, settings = tmp_path / "x.begun", {"top_k": 1}
    begun.write_text('{"top')  # killed in its first line
    assert begin(begun, settings) == []
    enter(begun, [True, False])
    begun.write_text(begun.read_text() + "fal")
    assert begin(begun, settings) == [True, False]
    enter(begun, [True])
    assert begin(begun, settings) == [True, False, True]
