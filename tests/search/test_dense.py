"""Dense search: exact where it says so, encoded once, complete or absent, refused if of another encoder."""

import signal
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from search_world import FOUR, random_passages, random_queries, write_lines

from a2tgpo_trl.cli import main
from a2tgpo_trl.search import dense, vectors
from a2tgpo_trl.search.retriever import dense_retriever
from a2tgpo_trl.search.vectors import Vectors


WIDTH = 16


class WordEncoder:
    """Encodes a text as the sum of its words' made-up vectors, so that texts of the same words are alike."""

    query_settings = {"query_prefix": ""}
    arguments: dict = {}

    def __init__(self, weights: str = "a"):
        self.passage_settings = {"encoder": weights}
        self.encoded = 0

    def passages(self, texts):
        self.encoded += len(texts)
        return self.queries(texts)

    def queries(self, texts):
        found = np.stack([sum(map(self._word, text.lower().split())) for text in texts])
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    def _word(self, word):
        seed = int.from_bytes(blake2b(word.strip('."').encode(), digest_size=8).digest())
        return np.random.default_rng(seed).normal(size=WIDTH)


@pytest.fixture
def many(tmp_path):
    return write_lines(tmp_path / "wiki.jsonl", random_passages(600, words=8, vocabulary=500))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(vectors, "SHARD", 100)


def ids(retriever, query: str, top_k: int = 3) -> list[str]:
    return [found.passage.id for found in retriever.search([query], top_k)[0]]


# ---- ranking


def test_flat_is_the_inner_product_with_every_passage(many, small_shards):
    encoder, queries = WordEncoder(), random_queries(20)
    retriever = dense_retriever(many, encoder)
    texts = [passage.contents for passage in retriever.corpus]
    expected = encoder.queries(queries) @ encoder.queries(texts).astype(np.float16).astype(np.float32).T
    for row, found in zip(expected, retriever.search(queries, 5), strict=True):
        assert [int(one.passage.id) for one in found] == np.argsort(-row, kind="stable")[:5].tolist()
        assert [one.score for one in found] == pytest.approx(sorted(row, reverse=True)[:5], abs=1e-5)
    assert retriever.search([], 3) == []


@pytest.mark.parametrize(("kind", "least"), [("ivf", 0.8), ("hnsw", 0.95), ("pq", 0.5)])
def test_approximate_indexes_find_most_of_what_flat_finds(many, small_shards, kind, least):
    encoder, queries = WordEncoder(), random_queries(50)
    flat, other = (dense_retriever(many, encoder, faiss=one) for one in ("flat", kind))
    assert encoder.encoded == 600  # once for both
    same = [len({*ids(flat, query)} & {*ids(other, query)}) for query in queries]
    assert least <= sum(same) / (3 * len(queries)) <= 1


def test_equal_scores_keep_the_order_of_the_corpus(tmp_path):
    rows = [{"id": str(n), "text": "same words" if n % 2 else "other text"} for n in range(12)]
    retriever = dense_retriever(write_lines(tmp_path / "wiki.jsonl", rows), WordEncoder())
    assert ids(retriever, "same words", 6) == ["1", "3", "5", "7", "9", "11"]


def test_a_passage_that_was_not_found_is_left_out():
    # What FAISS returns if the lists that it read hold a single passage.
    assert dense._hits([7, -1, -1], [0.5, -3e38, -3e38]) == [(7, 0.5)]
    assert dense._hits([9, 2, 4], [0.5, 0.5, 0.7]) == [(4, 0.7), (2, 0.5), (9, 0.5)]


def test_number_of_ivf_lists_leaves_enough_passages_per_list():
    # 4 * sqrt(100,000) = 1,265; 1,000 passages at 39 per list make 25.
    assert [dense._lists(passages) for passages in (100_000, 1_000, 3)] == [1265, 25, 1]


# ---- building


def test_interrupted_build_reuses_encoded_shards(many, small_shards, monkeypatch):
    class Breaks(WordEncoder):
        def passages(self, texts):
            if self.encoded == 300:
                raise RuntimeError("out of memory")
            return super().passages(texts)

    with pytest.raises(RuntimeError, match="out of memory"):
        dense_retriever(many, Breaks())
    assert not many.with_name("wiki.jsonl.dense-flat").exists()
    encoder, told = WordEncoder(), []
    retriever = dense_retriever(many, encoder, tell=told.append)
    assert encoder.encoded == 300 and "3 of 6 shards of vectors already exist" in told
    whole = dense_retriever(many, WordEncoder(), folder=many.parent / "elsewhere" / "index")
    assert all(ids(retriever, query) == ids(whole, query) for query in random_queries(20))


def test_vectors_of_another_encoder_are_not_reused(many, small_shards, monkeypatch):
    monkeypatch.setattr(dense, "build", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dense_retriever(many, WordEncoder("a"))
    monkeypatch.undo()
    other = WordEncoder("b")
    dense_retriever(many, other)
    assert other.encoded == 600


@pytest.mark.parametrize("stage", ["vectors", "index"])
def test_a_build_that_is_killed_leaves_no_index_and_the_next_is_whole(tmp_path, stage):
    corpus = write_lines(tmp_path / "wiki.jsonl", FOUR)
    # The program kills itself when a shard, or the index, is half written.
    code = f"""if True:
        import os, signal, sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1] / "helpers")!r}]
        from test_dense import WordEncoder
        from a2tgpo_trl.search import dense, vectors
        from a2tgpo_trl.search.retriever import dense_retriever
        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)
        if {stage!r} == "vectors":
            vectors.SHARD, vectors.os.fsync = 2, die
        else:
            dense._faiss().write_index = die
        dense_retriever({str(corpus)!r}, WordEncoder())
    """
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert not corpus.with_name("wiki.jsonl.dense-flat").exists()
    encoder = WordEncoder()
    retriever = dense_retriever(corpus, encoder)
    assert encoder.encoded == (4 if stage == "vectors" else 0)
    assert ids(retriever, FOUR[2]["contents"], 1) == ["2"]
    assert not list(tmp_path.glob("*.building"))


def test_full_disk_is_an_error_and_leaves_no_index(many, monkeypatch):
    write = Path.open

    def full(self, *args, **more):
        return open("/dev/full", "wb", buffering=0) if self.name == dense.INDEX else write(self, *args, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ValueError, match=r"no room for the index in .*dense-flat.building"):
        dense_retriever(many, WordEncoder())
    assert not many.with_name("wiki.jsonl.dense-flat").exists()
    monkeypatch.undo()
    assert len(ids(dense_retriever(many, WordEncoder()), "w1")) == 3


def test_non_finite_vectors_are_an_error(many):
    class Broken(WordEncoder):
        def passages(self, texts):
            found = super().passages(texts)
            found[7] = np.nan
            return found

    with pytest.raises(ValueError, match=r"vector of .*wiki.jsonl, passage 7, holds NaN or infinity"):
        dense_retriever(many, Broken())


def test_pq_with_too_few_passages_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="kind pq needs at least 256 passages; there are 4. Use flat"):
        dense_retriever(write_lines(tmp_path / "wiki.jsonl", FOUR), WordEncoder(), faiss="pq")
    with pytest.raises(ValueError, match="faiss must be one of flat, ivf, hnsw, pq; got 'lsh'"):
        dense_retriever(tmp_path / "wiki.jsonl", WordEncoder(), faiss="lsh")


# ---- of this corpus, encoder and kind, or refused


def test_an_index_of_another_encoder_kind_or_corpus_is_refused(many):
    place = many.with_name("index")
    dense_retriever(many, WordEncoder("a"), folder=place)
    with pytest.raises(ValueError, match="index with encoder 'a', not 'b'. Remove"):
        dense_retriever(many, WordEncoder("b"), folder=place)
    with pytest.raises(ValueError, match="index with faiss 'flat', not 'ivf'. Remove"):
        dense_retriever(many, WordEncoder("a"), folder=place, faiss="ivf")
    prefixed = WordEncoder("a")
    prefixed.query_settings = {"query_prefix": "query: "}
    with pytest.raises(ValueError, match="index with query_prefix '', not 'query: '. Remove"):
        dense_retriever(many, prefixed, folder=place)
    many.write_text(many.read_text().replace("w1", "w2"))
    with pytest.raises(ValueError, match="index of a corpus other than"):
        dense_retriever(many, WordEncoder("a"), folder=place)


def test_built_index_works_without_its_vectors(many):
    dense_retriever(many, WordEncoder())
    for file in next(many.parent.glob("wiki.jsonl.vectors-????????")).glob("vectors-*"):
        file.unlink()
    encoder = WordEncoder()
    assert len(ids(dense_retriever(many, encoder), "w1 w2")) == 3 and encoder.encoded == 0
    with pytest.raises(ValueError, match=r"Of 600 vectors, .*wiki.jsonl.vectors-\w+ holds 0. Remove it"):
        dense_retriever(many, encoder, faiss="hnsw")


def test_a_sample_of_vectors_is_drawn_from_all_shards(tmp_path):
    for start in (0, 10, 20):
        np.save(tmp_path / f"vectors-{start:02}.npy", np.arange(start, start + 10, dtype=np.float16)[:, None])
    found = Vectors(tmp_path)
    sampled = found.sample(12)[:, 0].tolist()
    assert len(found) == 30 and found.width == 1 and len(set(sampled)) == 12
    assert min(sampled) < 10 and max(sampled) >= 20 and sampled == found.sample(12)[:, 0].tolist()
    assert found.sample(99)[:, 0].tolist() == list(range(30))


# ---- the command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--index dense", "--index dense needs --encoder"),
        ("--faiss ivf --query-prefix q", "--query-prefix, --faiss: only for --index dense; BM25 has no such option"),
    ],
)
def test_incompatible_index_options_are_an_error(many, capsys, words, told):
    assert main(["serve-search", "--corpus", str(many), "--build", *words.split()]) != 0
    assert told in capsys.readouterr().err


def test_a_missing_extra_is_named(many, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert main(f"serve-search --corpus {many} --build --index dense --encoder x".split()) != 0
    assert "Dense search needs sentence_transformers: pip install 'a2tgpo_trl[dense]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"Dense search needs faiss: pip install 'a2tgpo_trl\[dense\]'"):
        dense_retriever(many, WordEncoder())
