"""passages, an encoder -> a vector of each on the disk, in shards, each complete or missing and made only once.

They are stored beside the indexes made from them, so that another kind of index needs no second encoding.
"""

import io
import json
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from .corpus import Corpus
from .encoder import Encoder
from .folder import ensure_index
from .progress import Tell, told


SHARD = 8192  # passages


class Vectors:
    """A vector for each passage, by number, in 16 bits."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._shards = [np.load(file, mmap_mode="r") for file in sorted(folder.glob("vectors-*.npy"))]

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    @property
    def width(self) -> int:
        return self._shards[0].shape[1]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield one shard after the other, in 32 bits."""
        return (np.asarray(shard, dtype=np.float32) for shard in self._shards)

    @property
    def shards(self) -> int:
        return len(self._shards)

    def sample(self, most: int) -> np.ndarray:
        """Vectors drawn uniformly from all shards, the same each time."""
        chosen = np.random.default_rng(0).choice(len(self), min(most, len(self)), replace=False)
        parts, begin = [], 0
        for shard in self._shards:
            here = chosen[(chosen >= begin) & (chosen < begin + len(shard))] - begin
            parts.append(np.asarray(shard[np.sort(here)], dtype=np.float32))
            begin += len(shard)
        return np.concatenate(parts)


def ensure_vectors(corpus: Path, beside: Path, encoder: Encoder, tell: Tell) -> Vectors:
    """The vectors of a corpus, in a folder beside its index; makes those that are missing."""
    settings = {"index": "vectors", **encoder.passage_settings}
    folder = beside.with_name(f"{corpus.name}.vectors-{_short_name(encoder)}")

    def build(passages: Corpus, place: Path, tell: Tell) -> None:
        _write(passages, encoder, place, tell)

    passages, vectors = ensure_index(corpus, folder, settings, build, tell), Vectors(folder)
    if len(vectors) != len(passages):
        raise ValueError(
            f"Of {len(passages):,} vectors, {folder} holds {len(vectors):,}. Remove it to have all made again."
        )
    return vectors


def _short_name(encoder: Encoder) -> str:
    return blake2b(json.dumps(encoder.passage_settings, sort_keys=True).encode(), digest_size=4).hexdigest()


def _write(corpus: Corpus, encoder: Encoder, folder: Path, tell: Tell) -> None:
    """Write the shards that are missing."""
    files = {start: folder / f"vectors-{start:012}.npy" for start in range(0, len(corpus), SHARD)}
    missing = [start for start, file in files.items() if not file.exists()]
    if len(missing) < len(files):
        tell(f"{len(files) - len(missing)} of {len(files)} shards of vectors already exist")
    for start in told(missing, len(missing), f"vectors, shards of {SHARD:,} passages", tell):
        texts = [corpus[number].contents for number in range(start, min(start + SHARD, len(corpus)))]
        vectors = encoder.passages(texts)
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"The encoder's vector of {corpus.file}, passage {start + wrong[0]}, holds NaN or infinity. Try "
                "another device, or another encoder."
            )
        _save(vectors.astype(np.float16), files[start])


def _save(vectors: np.ndarray, file: Path) -> None:
    """Write a file so that, under its name, it is always complete, even after a power failure."""
    content = io.BytesIO()
    np.save(content, vectors)
    unfinished = file.with_suffix(".unfinished")
    with unfinished.open("wb") as opened:
        opened.write(content.getbuffer())
        opened.flush()
        os.fsync(opened.fileno())
    unfinished.replace(file)
