"""a corpus and its index -> the best passages for queries."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import bm25, dense
from .corpus import Corpus, Passage
from .encoder import Encoder, SentenceEncoder
from .folder import ensure_index, manifest_of
from .progress import Tell
from .vectors import ensure_vectors


LONGEST_QUERY = 10_000  # characters


class Index(Protocol):
    def rank(self, queries: Sequence[str], top_k: int) -> list[bm25.Hits]:
        """For each query, the numbers of the best passages and their scores, best first."""


@dataclass(frozen=True)
class Found:
    passage: Passage
    score: float


class Retriever:
    """Searches a corpus. May be used from several threads."""

    def __init__(self, corpus: Corpus, index: Index):
        self.corpus, self._index = corpus, index

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Found]]:
        """For each query its best passages, best first; with BM25 fewer, if fewer share a word with it."""
        for query in queries:
            check_query(query)
        check_top_k(top_k, len(self.corpus))
        ranked = self._index.rank(queries, top_k)
        return [[Found(self.corpus[number], score) for number, score in hits] for hits in ranked]


def check_query(query: Any) -> None:
    if not isinstance(query, str):
        raise ValueError(f"A query must be text; got {type(query).__name__}.")
    if not query.strip():
        raise ValueError("A query is empty. Ask for something.")
    if len(query) > LONGEST_QUERY:
        raise ValueError(f"A query has {len(query):,} characters; the most is {LONGEST_QUERY:,}. Shorten it.")


def check_top_k(top_k: Any, passages: int) -> None:
    if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= passages:
        raise ValueError(f"topk must be a whole number from 1 to {passages:,}, the passages there are; got {top_k!r}.")


def _silent(_: str) -> None:
    pass


def _named(corpus: str | Path) -> Path:
    """The corpus's path, ending in a name, from which its index's folder gets one. Example: "." -> /home/me/docs"""
    path = Path(corpus)
    return path if path.name not in ("", "..") else path.resolve()


def bm25_retriever(corpus: str | Path, folder: str | Path | None = None, tell: Tell = _silent) -> Retriever:
    """A BM25 retriever of a corpus. Builds its index first if the folder (CORPUS.bm25) lacks it."""
    corpus = _named(corpus)
    place = Path(folder) if folder else corpus.with_name(f"{corpus.name}.bm25")
    passages = ensure_index(corpus, place, bm25.SETTINGS, bm25.build, tell)
    return Retriever(passages, bm25.BM25(place))


def dense_retriever(
    corpus: str | Path,
    encoder: Encoder,
    *,
    faiss: str = "flat",
    folder: str | Path | None = None,
    tell: Tell = _silent,
) -> Retriever:
    """A dense retriever of a corpus. Builds its index first if the folder (CORPUS.dense-FAISS) lacks it."""
    corpus = _named(corpus)
    place = Path(folder) if folder else corpus.with_name(f"{corpus.name}.dense-{faiss}")

    def build(_: Corpus, building: Path, tell: Tell) -> None:
        (building / dense.ENCODER).write_text(json.dumps(encoder.arguments), encoding="utf-8")
        dense.build(ensure_vectors(corpus, place, encoder, tell), faiss, building, tell)

    passages = ensure_index(corpus, place, dense.settings_of(faiss, encoder), build, tell)
    return Retriever(passages, dense.Dense(place, encoder))


def open_retriever(folder: str | Path, device: str = "cpu") -> Retriever:
    """A retriever over an existing index, which must be in the same place as when it was built, like its corpus.

    The encoder of a dense index runs on `device`, by default not on the policy's.
    """
    folder = Path(folder)
    manifest = manifest_of(folder)
    corpus, settings = manifest["corpus"]["path"], manifest["settings"]
    if settings["index"] == "dense":
        encoder = SentenceEncoder(**dense.encoder_arguments(folder), device=device)
        return dense_retriever(corpus, encoder, faiss=settings["faiss"], folder=folder)
    return bm25_retriever(corpus, folder)
