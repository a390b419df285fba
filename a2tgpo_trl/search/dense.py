"""vectors of passages -> a FAISS index on the disk -> numbers and scores of the passages nearest to a query.

flat   each vector is compared: exact
ivf    vectors in lists of neighbours; a sixteenth of the lists is compared
hnsw   a graph of neighbours, which is walked along
pq     each vector in a sixteenth of its room, compared by what is left of it
"""

import json
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from .bm25 import Hits
from .encoder import Encoder, missing
from .progress import Tell, told
from .vectors import Vectors


KINDS = ("flat", "ivf", "hnsw", "pq")
INDEX, ENCODER = "passages.faiss", "encoder.json"
MOST_WRITTEN = 2**22  # bytes at a time

# Of FAISS. It asks for 39 vectors or more a list to train on, and for as many vectors as a code has values.
FEWEST_OF_A_LIST, SAMPLED_OF_A_LIST = 39, 64
PROBES = 16  # a search reads one list in so many, and eight at least
LINKS, BREADTH_BUILDING, BREADTH_SEARCHING = 32, 200, 128
CODES, SAMPLED_OF_A_CODE = 256, 256


class Dense:
    """An index on the disk, mapped into memory. May be used from several threads."""

    def __init__(self, folder: Path, encoder: Encoder):
        faiss = _faiss()
        self._index = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP_IFC)
        self._encoder = encoder

    def rank(self, queries: Sequence[str], top_k: int) -> list[Hits]:
        """For each query, the passages nearest to it, nearest first; equal ones by their number."""
        if not queries:
            return []
        scores, numbers = self._index.search(self._encoder.queries(queries), top_k)
        return [_hits(*row) for row in zip(numbers.tolist(), scores.tolist(), strict=True)]


def _hits(numbers: list[int], scores: list[float]) -> Hits:
    """A number of -1 stands for no passage: the lists that were read held fewer."""
    found = [(number, score) for number, score in zip(numbers, scores, strict=True) if number >= 0]
    return sorted(found, key=lambda hit: (-hit[1], hit[0]))


def settings_of(kind: str, encoder: Encoder) -> dict[str, Any]:
    """What an index must have in common with what is asked for."""
    if kind not in KINDS:
        raise ValueError(f"faiss must be one of {', '.join(KINDS)}; got {kind!r}.")
    return {"index": "dense", "faiss": kind, **encoder.passage_settings, **encoder.query_settings}


def encoder_arguments(folder: Path) -> dict[str, Any]:
    """What the encoder of an index is made with."""
    return json.loads((folder / ENCODER).read_text(encoding="utf-8"))


# ---- building


def build(vectors: Vectors, kind: str, folder: Path, tell: Tell) -> None:
    index = _empty(kind, len(vectors), vectors.width)
    sampled = _sampled(kind, len(vectors))
    if sampled:
        tell(f"{kind}: training on {min(sampled, len(vectors)):,} vectors")
        index.train(vectors.sample(sampled))
    for shard in told(vectors, vectors.shards, f"{kind}, shards", tell):
        index.add(shard)
    faiss = _faiss()
    with (folder / INDEX).open("wb") as file:  # through Python, whose errors say that the disk is full
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write, MOST_WRITTEN))


def _empty(kind: str, passages: int, width: int) -> Any:
    faiss = _faiss()
    alike = faiss.METRIC_INNER_PRODUCT
    if kind == "ivf":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, _lists(passages), alike)
        index.nprobe = max(8, _lists(passages) // PROBES)
        return index
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, LINKS, alike)
        index.hnsw.efConstruction, index.hnsw.efSearch = BREADTH_BUILDING, BREADTH_SEARCHING
        return index
    if kind == "pq":
        if passages < CODES:
            raise ValueError(
                f"An index of kind pq needs {CODES} passages or more; there are {passages}. Take flat (--faiss flat)."
            )
        piece = next(size for size in (4, 3, 2, 1) if width % size == 0)  # numbers that share a byte
        index = faiss.IndexPQ(width, width // piece, 8, alike)
        index.pq.cp.min_points_per_centroid = 1  # few passages are no reason to warn
        return index
    return faiss.IndexFlatIP(width)


def _lists(passages: int) -> int:
    """Four times the root of the passages, as FAISS advises, where that leaves enough for each.

    Example: 100,000 -> 1,265; 1,000 -> 25
    """
    return max(1, min(round(4 * sqrt(passages)), passages // FEWEST_OF_A_LIST))


def _sampled(kind: str, passages: int) -> int:
    """How many vectors an index is trained on; 0: it is not."""
    return {"ivf": _lists(passages) * SAMPLED_OF_A_LIST, "pq": CODES * SAMPLED_OF_A_CODE}.get(kind, 0)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise missing(error) from error
    return faiss
