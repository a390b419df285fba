"""passages -> their BM25 index on the disk, in the format of bm25s -> numbers and scores of the best passages.

`bm25s` itself builds an index in memory. This module counts the words of one chunk of passages at a time, and writes
the scores, by the same formula (Lucene's), into files of their final size. The commonest English words (`STOPWORDS_EN`
of bm25s) are left out, as in Lucene. Word endings are kept.
"""

import json
import mmap
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import bm25s
import numpy as np
from bm25s.stopwords import STOPWORDS_EN

from ..tools.search import words
from .corpus import Corpus
from .progress import Tell, told


CHUNK = 20_000  # passages, a few hundred MiB
K1, B = 1.5, 0.75
SETTINGS = {"index": "bm25", "k1": K1, "b": B}
_LEFT_OUT = frozenset(STOPWORDS_EN)

Hits = list[tuple[int, float]]


def terms(text: str) -> list[str]:
    """The words that are compared.

    Example: "The mayor of Velm." -> ["mayor", "velm"]
    """
    return [word for word in words(text) if word not in _LEFT_OUT]


class BM25:
    """An index on the disk; a query reads only the parts that it needs. May be used from several threads."""

    def __init__(self, folder: Path):
        self._scorer = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        self._mapped = [self._scorer.scores[part].base for part in ("data", "indices")]

    def rank(self, queries: Sequence[str], top_k: int) -> list[Hits]:
        """For each query, the best passages that share a word with it, best first; equal scores by number."""
        return [self._rank(query, top_k) for query in queries]

    def _rank(self, query: str, top_k: int) -> Hits:
        ids = self._scorer.get_tokens_ids(terms(query))
        if not ids:
            return []
        scores = self._scorer.get_scores_from_ids(ids)
        self._leave_pages()
        return best(scores, top_k)

    def _leave_pages(self) -> None:
        """Release the pages that were read: they stay in the system's cache, but no longer count as this process's."""
        for mapped in self._mapped:
            mapped.madvise(mmap.MADV_DONTNEED)


def best(scores: np.ndarray, top_k: int) -> Hits:
    """The highest scores above 0; among equal scores, those that come first.

    Example: [0.5, 0, 2, 0.5], 2 -> [(2, 2.0), (0, 0.5)]
    """
    place = max(len(scores) - top_k, 0)
    lowest = np.partition(scores, place)[place]
    found = np.flatnonzero((scores >= lowest) & (scores > 0))
    found = found[np.argsort(-scores[found], kind="stable")][:top_k]
    return [(int(number), float(scores[number])) for number in found]


# ---- building


def build(corpus: Corpus, folder: Path, tell: Tell) -> None:
    """Write the index. After an interrupted build, start over."""
    vocabulary: dict[str, int] = defaultdict(lambda: len(vocabulary))
    lengths = np.zeros(len(corpus), dtype=np.int32)
    chunks = []
    numbered = enumerate(told((passage.contents for passage in corpus), len(corpus), "words", tell))
    for start in range(0, len(corpus), CHUNK):
        texts = (next(numbered) for _ in range(min(CHUNK, len(corpus) - start)))
        chunks.append(folder / f"chunk-{start}.npy")
        np.save(chunks[-1], _count(texts, vocabulary, lengths))
    if not vocabulary:
        raise ValueError(f"No passage of {corpus.file} holds a word that can be searched for.")
    _write_scores(chunks, lengths, len(vocabulary), folder, tell)
    (folder / "vocab.index.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    parameters = {"k1": K1, "b": B, "method": "lucene", "num_docs": len(corpus), "version": bm25s.__version__}
    (folder / "params.index.json").write_text(json.dumps(parameters))
    for chunk in chunks:
        chunk.unlink()


def _count(texts: Iterable[tuple[int, str]], vocabulary: dict[str, int], lengths: np.ndarray) -> np.ndarray:
    """Words, passages, and how often the word occurs in the passage, sorted: an array (3, P)."""
    pairs = []
    for number, text in texts:
        ids = [vocabulary[word] for word in terms(text)]
        lengths[number] = len(ids)
        pairs.append(np.array(ids, dtype=np.int64) << 32 | number)
    found, often = np.unique(np.concatenate(pairs), return_counts=True)
    return np.stack([found >> 32, found & 0xFFFFFFFF, often]).astype(np.int32)


def _write_scores(chunks: list[Path], lengths: np.ndarray, size: int, folder: Path, tell: Tell) -> None:
    """Write the passages of each word, one word after the other, and the score that the word gives to each."""
    in_passages = np.zeros(size, dtype=np.int64)
    for chunk in chunks:
        in_passages += np.bincount(np.load(chunk, mmap_mode="r")[0], minlength=size)
    begins = np.concatenate([[0], np.cumsum(in_passages)])
    np.save(folder / "indptr.csc.index.npy", begins)
    scores = _allocate(folder / "data.csc.index.npy", np.dtype(np.float32), int(begins[-1]))
    passages = _allocate(folder / "indices.csc.index.npy", np.dtype(np.int32), int(begins[-1]))
    # As bm25s rounds: the rarity of a word in 32 bits, the rest in 64.
    rarity = np.log(1 + (len(lengths) - in_passages + 0.5) / (in_passages + 0.5)).astype(np.float32)
    norm = K1 * ((1 - B) + B * lengths / lengths.mean())
    next_free = begins[:-1].copy()
    for chunk in told(chunks, len(chunks), "scores", tell):
        word, passage, often = np.load(chunk)
        first, count = np.unique(word, return_index=True, return_counts=True)[1:]
        within = np.arange(len(word)) - np.repeat(first, count)
        place = next_free[word] + within
        next_free[word[first]] += count
        scores[place] = rarity[word] * (often / (norm[passage] + often))
        passages[place] = passage
    scores.flush()
    passages.flush()


def _allocate(file: Path, kind: np.dtype, length: int) -> np.memmap:
    """Make a file of zeros and reserve its place on the disk: a full disk is an error here, not a crash later."""
    array = np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=(length,))
    with file.open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array
