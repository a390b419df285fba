"""Corpora of made-up passages on the disk."""

import json
import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path


FOUR = [
    {"id": "0", "contents": '"Velm"\nVelm is a town on the river Osk. Its mayor is Ada Brin.'},
    {"id": "1", "contents": '"Osk"\nThe Osk is a river that ends in the lake Torn.'},
    {"id": "2", "contents": '"Ada Brin"\nAda Brin was born in Torn and is a mayor.'},
    {"id": "3", "contents": '"Torn"\nTorn is a lake. No river leaves it.'},
]


def write_lines(file: Path, rows) -> Path:
    with file.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row) + "\n")
    return file


def random_passages(number: int, words: int = 60, vocabulary: int = 50_000, seed: int = 0) -> Iterator[dict[str, str]]:
    """Passages whose words are about as common as a language's: the n-th has a share of 1 / n."""
    rng = random.Random(seed)
    known = [f"w{n}" for n in range(vocabulary)]
    shares = list(accumulate(1 / (n + 10) for n in range(vocabulary)))
    for n in range(number):
        text = rng.choices(known, cum_weights=shares, k=words)
        yield {"id": str(n), "contents": f'"{text[0]} {text[1]}"\n{" ".join(text)}'}


def random_queries(number: int, seed: int = 1) -> list[str]:
    """Queries of six such words each."""
    rows = random_passages(number, words=6, seed=seed)
    return [row["contents"].partition("\n")[2] for row in rows]
