"""vectors of passages -> a FAISS index on the disk -> numbers and scores of the passages nearest to a query.

flat   compares every vector: exact
ivf    vectors in lists of neighbours; compares a sixteenth of the lists
hnsw   walks a graph of neighbours
pq     each vector compressed to a sixteenth of its size, and compared in that form
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

# Parameters of FAISS. It wants at least 39 training vectors per list, and as many vectors as a code has values.
FEWEST_OF_A_LIST, SAMPLED_OF_A_LIST = 39, 64
PROBES = 16  # a search reads one list in this many, and at least eight
LINKS, BREADTH_BUILDING, BREADTH_SEARCHING = 32, 200, 128
CODES, SAMPLED_OF_A_CODE = 256, 256


class Dense:
    """An index on the disk, mapped into memory. May be used from several threads."""

    def __init__(self, folder: Path, encoder: Encoder):
        faiss = _faiss()
        self._index = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP_IFC)
        self._encoder = encoder

    def rank(self, queries: Sequence[str], top_k: int) -> list[Hits]:
        """For each query, the passages nearest to it, nearest first; equal scores by number."""
        if not queries:
            return []
        scores, numbers = self._index.search(self._encoder.queries(queries), top_k)
        return [_hits(*row) for row in zip(numbers.tolist(), scores.tolist(), strict=True)]


def _hits(numbers: list[int], scores: list[float]) -> Hits:
    """Drop the number -1, which stands for no passage (the lists that were read held too few), and sort the hits."""
    found = [(number, score) for number, score in zip(numbers, scores, strict=True) if number >= 0]
    return sorted(found, key=lambda hit: (-hit[1], hit[0]))


def settings_of(kind: str, encoder: Encoder) -> dict[str, Any]:
    """The settings in which an index must agree with what is requested."""
    if kind not in KINDS:
        raise ValueError(f"faiss must be one of {', '.join(KINDS)}; got {kind!r}.")
    return {"index": "dense", "faiss": kind, **encoder.passage_settings, **encoder.query_settings}


def encoder_arguments(folder: Path) -> dict[str, Any]:
    """The arguments of an index's encoder."""
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
    with (folder / INDEX).open("wb") as file:  # through Python, whose errors report a full disk
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
                f"An index of kind pq needs at least {CODES} passages; there are {passages}. Use flat (--faiss flat)."
            )
        piece = next(size for size in (4, 3, 2, 1) if width % size == 0)  # numbers that share a byte
        index = faiss.IndexPQ(width, width // piece, 8, alike)
        index.pq.cp.min_points_per_centroid = 1  # no warning about few passages
        return index
    return faiss.IndexFlatIP(width)


def _lists(passages: int) -> int:
    """Four times the root of the number of passages, as FAISS advises, or fewer if that leaves too few for each.

    Example: 100,000 -> 1,265; 1,000 -> 25
    """
    return max(1, min(round(4 * sqrt(passages)), passages // FEWEST_OF_A_LIST))


def _sampled(kind: str, passages: int) -> int:
    """How many vectors an index is trained on; 0 if it needs no training."""
    return {"ivf": _lists(passages) * SAMPLED_OF_A_LIST, "pq": CODES * SAMPLED_OF_A_CODE}.get(kind, 0)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise missing(error) from error
    return faiss
