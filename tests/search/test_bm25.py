"""The index on the disk: it ranks as bm25s does, is complete or absent, and is refused if of another corpus."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import bm25s
import numpy as np
import pytest
from search_world import FOUR, random_passages, random_queries, write_lines
from waiting import until

from a2tgpo_trl.search import bm25, folder
from a2tgpo_trl.search.retriever import bm25_retriever, open_retriever


@pytest.fixture
def four(tmp_path):
    return write_lines(tmp_path / "wiki.jsonl", FOUR)


def ids(retriever, query: str, top_k: int = 4) -> list[str]:
    return [found.passage.id for found in retriever.search([query], top_k)[0]]


def test_the_best_passages_are_found_with_their_scores(four):
    retriever = bm25_retriever(four)
    (found,) = retriever.search(["the mayor of Velm"], 2)
    assert [one.passage.title for one in found] == ["Velm", "Ada Brin"] and found[0].score > found[1].score > 0
    assert retriever.search(["the of", "nothing-known"], 2) == [[], []]  # words left out, words in no passage
    assert len(retriever.search(["Torn river"], 4)[0]) == 4 and retriever.search([], 1) == []


def test_ranking_and_scores_are_those_of_bm25s_in_memory_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(bm25, "CHUNK", 70)  # several chunks, the last one not full
    rows = list(random_passages(500, words=30, vocabulary=400))
    retriever = bm25_retriever(write_lines(tmp_path / "wiki.jsonl", rows))
    scorer = bm25s.BM25()
    scorer.index([bm25.terms(row["contents"]) for row in rows], show_progress=False)
    for query in [row["contents"].partition("\n")[2] for row in random_passages(30, 5, 400, seed=1)]:
        scores = scorer.get_scores(bm25.terms(query))
        hits = retriever._index.rank([query], 20)[0]
        assert [score for _, score in hits] == sorted(scores[scores > 0].tolist(), reverse=True)[:20]
        assert all(scores[number] == score for number, score in hits)


def test_equal_scores_keep_the_order_of_the_corpus(tmp_path):
    rows = [{"id": str(n), "text": "same words" if n % 2 else "other text"} for n in range(40)]
    retriever = bm25_retriever(write_lines(tmp_path / "wiki.jsonl", rows))
    assert ids(retriever, "words", 5) == ["1", "3", "5", "7", "9"]
    assert bm25.best(np.array([0.5, 0, 2, 0.5], dtype=np.float32), 2) == [(2, 2.0), (0, 0.5)]
    assert bm25.best(np.array([0.0, 1.0]), 2) == [(1, 1.0)]


def test_scores_are_memory_mapped(four):
    scorer = bm25_retriever(four)._index._scorer
    assert all(isinstance(scorer.scores[name], np.memmap) for name in ("data", "indices", "indptr"))


def test_pages_read_by_a_query_are_released(tmp_path):
    retriever = bm25_retriever(write_lines(tmp_path / "wiki.jsonl", random_passages(2000)))

    def resident() -> int:
        """KiB of the scores that are in memory."""
        _, _, mapping = Path("/proc/self/smaps").read_text().partition("wiki.jsonl.bm25/data.csc.index.npy")
        return int(mapping.partition("Rss:")[2].split()[0])

    assert retriever._index._scorer.scores["data"].sum() > 0 and resident() > 300
    assert retriever.search(random_queries(1), 3)[0] and resident() == 0


def test_an_index_is_built_once_and_opened_by_its_folder(four, monkeypatch):
    told = []
    bm25_retriever(four, tell=told.append)
    assert "4 passages" in told
    monkeypatch.setattr(bm25, "build", lambda *_: 1 / 0)
    assert ids(bm25_retriever(four), "Osk") == ids(open_retriever(f"{four}.bm25"), "Osk") == ["1", "0"]


def test_corpus_with_a_new_mtime_is_accepted_and_a_changed_one_refused(four):
    bm25_retriever(four)
    os.utime(four, (1, 1))
    assert ids(bm25_retriever(four), "Osk") == ["1", "0"]
    four.write_text(four.read_text().replace("Velm", "Helm"))
    with pytest.raises(ValueError, match=r"index of a corpus other than .*wiki.jsonl.*Remove .*wiki.jsonl.bm25"):
        bm25_retriever(four)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 0}, "holds an index of version 0; this is version 1. Remove"),
        ({"settings": {"index": "dense"}}, "holds an index with index 'dense', not 'bm25'. Remove"),
    ],
)
def test_an_index_of_another_version_or_kind_is_refused(four, change, told):
    bm25_retriever(four)
    manifest = four.with_name("wiki.jsonl.bm25") / folder.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(ValueError, match=told):
        bm25_retriever(four)


def test_a_folder_that_holds_no_index_is_left_alone(four, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="holds no index. Name another folder"):
        bm25_retriever(four, tmp_path / "mine")
    with pytest.raises(ValueError, match="holds no index. Build one"):
        open_retriever(tmp_path / "mine")
    with pytest.raises(ValueError, match="There is no corpus"):
        bm25_retriever(tmp_path / "nowhere.jsonl")


def test_full_disk_is_an_error_and_leaves_no_index(four, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bm25.os, "posix_fallocate", full)
    with pytest.raises(ValueError, match=r"no room for the index in .*wiki.jsonl.bm25.building"):
        bm25_retriever(four)
    assert not four.with_name("wiki.jsonl.bm25").exists()
    monkeypatch.undo()
    assert ids(bm25_retriever(four), "Osk") == ["1", "0"]


def test_corpus_changed_during_indexing_is_an_error(four):
    def change(line: str) -> None:
        if "passages" in line:
            four.write_text(four.read_text() + "\n")

    with pytest.raises(ValueError, match="was changed while it was indexed"):
        bm25_retriever(four, tell=change)
    assert ids(bm25_retriever(four), "Osk") == ["1", "0"]


def test_a_folder_of_texts_is_a_corpus(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "Velm.txt").write_text("A town on the river Osk.")
    retriever = bm25_retriever(texts)
    shutil.copytree(texts, tmp_path / "copy")
    assert ids(retriever, "Osk", 1) == ids(bm25_retriever(tmp_path / "copy", tmp_path / "texts.bm25"), "Osk", 1)
    assert ids(retriever, "Velm", 1) == ["Velm.txt#0"]  # the title is searched as well


@pytest.mark.parametrize("stage", ["words", "scores"])
def test_a_build_that_is_killed_leaves_no_index_and_the_next_is_whole(four, stage):
    # The program kills itself at the given stage: within the words of the first chunk, or among the scores.
    code = f"""if True:
        import os, signal
        from a2tgpo_trl.search import bm25
        from a2tgpo_trl.search.retriever import bm25_retriever
        def told(items, total, what, tell):
            for item in items:
                if what == {stage!r}:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield item
        bm25.told = told
        bm25_retriever({str(four)!r})
    """
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert four.with_name("wiki.jsonl.bm25.building").exists() and not four.with_name("wiki.jsonl.bm25").exists()
    assert ids(bm25_retriever(four), "Osk") == ["1", "0"]
    assert not four.with_name("wiki.jsonl.bm25.building").exists()


@pytest.mark.slow
def test_builds_that_are_killed_at_any_moment_leave_a_usable_index_or_none(tmp_path):
    corpus = write_lines(tmp_path / "wiki.jsonl", random_passages(20_000))
    command = [sys.executable, "-m", "a2tgpo_trl", "serve-search", "--corpus", str(corpus), "--build"]
    place = tmp_path / "wiki.jsonl.bm25"
    for moment in range(8):
        with subprocess.Popen(command) as building:
            until(lambda: place.exists() or place.with_name("wiki.jsonl.bm25.building").exists(), 60)
            time.sleep(0.4 * moment)
            building.kill()
        if place.exists():
            assert len(open_retriever(place).search(random_queries(1), 3)[0]) == 3
            shutil.rmtree(place)
    retriever = bm25_retriever(corpus)
    assert all(len(found) == 3 for found in retriever.search(random_queries(20), 3))
