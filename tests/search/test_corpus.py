"""Files of passages: what is read from them, and what is said about a line that is not a passage."""

import json

import numpy as np
import pytest
from search_world import FOUR, write_lines

from a2tgpo_trl.search import corpus as module
from a2tgpo_trl.search.corpus import Corpus, Passage, cut, scan


def read(file) -> list[Passage]:
    return list(Corpus(file, scan(file)))


def test_each_line_format_gives_a_passage(tmp_path):
    rows = [
        {"id": "7", "contents": '"Velm"\nA town.\nIt is old.'},
        {"id": 8, "title": "Osk", "text": "A river."},
        {"contents": "No title here."},
        {"id": None, "text": "Nor here."},
        {"id": "x", "title": "Torn", "contents": "Torn\nA lake.", "url": "more is no matter"},
    ]
    assert read(write_lines(tmp_path / "wiki.jsonl", rows)) == [
        Passage("7", "Velm", '"Velm"\nA town.\nIt is old.'),
        Passage("8", "Osk", '"Osk"\nA river.'),
        Passage("2", "", "No title here."),  # the third passage
        Passage("3", "", "Nor here."),
        Passage("x", "Torn", "Torn\nA lake."),
    ]
    assert (
        Passage("7", "Velm", '"Velm"\nA town.').text == "A town."
        and Passage("", "", "All of it.").text == "All of it."
    )


def test_passages_are_read_by_number_despite_blank_lines_and_no_final_newline(tmp_path):
    file = tmp_path / "wiki.jsonl"
    file.write_bytes("\n".join([json.dumps(FOUR[0]), "", "  ", json.dumps({"id": "é", "text": "ü"})]).encode())
    corpus = Corpus(file, scan(file))
    assert len(corpus) == 2 and corpus[1] == Passage("é", "", "ü") and corpus[0].title == "Velm"


BAD = {
    b'{"id": "0", "contents": "a"': "line 3 is not JSON",
    b'{"id": "0", "contents": "\xff"}': "line 3 is not JSON",
    b"[" * 100_000: "line 3 is not JSON",
    b'["a"]': "line 3 does not hold an object",
    b'{"id": "5", "title": "a"}': "line 3 has no text; its keys are id, title",
    b'{"id": "5", "contents": "  "}': "line 3 has no text",
    b'{"id": "5", "contents": null}': "line 3 has no text",
    b'{"id": "5", "contents": 12}': "line 3: contents is 12, which is not text",
    b'{"id": "5", "contents": "a \\ud800"}': "line 3: contents holds half a character",
    b'{"id": "1", "contents": "a"}': "lines 2 and 3 both have the id '1'",
    b'{"contents": "a"}\n{"id": 2, "contents": "b"}': "lines 3 and 4 both have the id '2'",
}


@pytest.mark.parametrize(("line", "told"), BAD.items(), ids=[told[:30] for told in BAD.values()])
def test_invalid_line_is_an_error_naming_the_line(tmp_path, line, told):
    file = write_lines(tmp_path / "wiki.jsonl", FOUR[:2])
    file.write_bytes(file.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=told) as caught:
        scan(file)
    assert str(file) in str(caught.value) and any(word in str(caught.value) for word in ("Fix", "remove"))


def test_line_of_100_mb_is_an_error_without_being_parsed(tmp_path, monkeypatch):
    file = write_lines(tmp_path / "wiki.jsonl", FOUR[:1])
    with file.open("ab") as opened:
        opened.truncate(100 * 2**20)
    monkeypatch.setattr(
        module.json, "loads", lambda line, right=json.loads: right(line) if len(line) < 1000 else 1 / 0
    )
    with pytest.raises(ValueError, match="line 2 is longer than 1,048,576 bytes"):
        scan(file)


@pytest.mark.parametrize("held", ["", "\n\n"])
def test_an_empty_corpus_is_an_error(tmp_path, held):
    (tmp_path / "wiki.jsonl").write_text(held)
    with pytest.raises(ValueError, match="holds no passage"):
        scan(tmp_path / "wiki.jsonl")


def test_text_files_are_cut_into_passages_of_a_hundred_words(tmp_path):
    folder = tmp_path / "texts"
    (folder / "towns").mkdir(parents=True)
    (folder / "towns" / "Velm.txt").write_text(" ".join(f"w{n}" for n in range(130)))
    (folder / "Osk.md").write_text("A river.")
    (folder / "picture.png").write_bytes(b"\x89")
    cut(folder, tmp_path / "cut.jsonl")
    passages = read(tmp_path / "cut.jsonl")
    assert [passage.id for passage in passages] == ["Osk.md#0", "towns/Velm.txt#0", "towns/Velm.txt#1"]
    assert passages[1].title == "Velm" and passages[1].text.split() == [f"w{n}" for n in range(100)]
    assert passages[2].text.split()[-1] == "w129"
    (folder / "Latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"Latin.txt is not text in UTF-8"):
        cut(folder, tmp_path / "cut.jsonl")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"holds no file that ends with .txt or .md"):
        cut(tmp_path / "none", tmp_path / "cut.jsonl")


def test_hash_collision_of_different_ids_is_no_duplicate(tmp_path):
    file = write_lines(tmp_path / "wiki.jsonl", FOUR)
    corpus = Corpus(file, scan(file))
    assert module._check_ids(corpus, np.zeros(4, dtype=np.uint64)) is None  # no error
