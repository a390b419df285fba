"""what rollouts tried (texts), outcomes (N,), groups (N,) -> outcomes with partial reward for failures (N,).

    o[i] + (s - o[i]) (a / |P|) sum over p in P of cos(e(c[i]), e(c[p]))        for a failed rollout i

s is the reward of success, P are the passing rollouts of its group, c is the text that a rollout passed to its tools
(its code), e an embedding of texts (GTPO, arXiv 2511.14846: a = 0.5, with a hosted embedding; here one that runs
offline). With rewards of 0 and 1 a failure earns a times its likeness, as in the paper. A failure that has already
earned part of 1 gets its share of the rest, so no failure is worth as much as a success.

Shapes: N rollouts of all ranks, B of this rank, D numbers of an embedding.
"""

import importlib.util
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor
from torch.nn.functional import normalize

from ..lookup import load


logger = get_logger(__name__)

Embedding = Callable[[list[str]], Tensor]  # texts -> (number of texts, D)

PASSING_SLACK = 1e-6  # rounding of a sum of rewards
NGRAMS_NAME = "ngrams"
NGRAMS = 3
DIMENSIONS = 4096
_TOKEN = re.compile(r"\w+|[^\w\s]")
# Small, and present on most machines that have sentence-transformers.
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def shaped_outcomes(
    outcomes_N: Tensor, embeddings_ND: Tensor, group_ids_N: Tensor, *, weight: float, passing: float
) -> Tensor:
    """Add to failed outcomes what they earn by being like their group's successes. NaN stays NaN, and is neither.

    Args:
        outcomes_N: reward of each rollout, NaN if it was not scored.
        embeddings_ND: embeddings of what each tried; zeros if it tried nothing, which is like nothing else.
        weight: the share of what a failure lacks that it earns if it is the same as each success.
        passing: the lowest outcome of a rollout that has passed.

    Example (one group, weight 0.5, passing 1): outcomes [1, 0, 0], cosines with the first 0.6 and 0 -> [1, 0.3, 0]
    """
    unit_ND = normalize(embeddings_ND.to(torch.float32), dim=1, eps=1e-12)
    passed_N = has_passed(outcomes_N, passing)
    mates_NN = (group_ids_N.unsqueeze(1) == group_ids_N.unsqueeze(0)) & passed_N.unsqueeze(0)
    likeness_N = ((unit_ND @ unit_ND.T) * mates_NN).sum(dim=1) / mates_NN.sum(dim=1).clamp(min=1)
    earned_N = (passing - outcomes_N) * weight * likeness_N.to(outcomes_N.dtype)
    return torch.where(passed_N, outcomes_N, outcomes_N + earned_N)


def has_passed(outcome: Any, passing: float) -> Any:
    """Whether an outcome, or each one in a tensor, is at least `passing`, up to rounding."""
    return outcome >= passing - PASSING_SLACK


def attempted(record: Mapping[str, Any]) -> str:
    """Return what a rollout passed to its tools: the texts among the arguments of all its calls, joined.

    If a rollout function made the calls, it is the text of all turns that were answered.
    """
    if any(turn["calls"] is None for turn in record["turns"]):
        return "\n".join(turn["text"] for turn in record["turns"] if turn["tokens_in"])
    calls = [call for turn in record["turns"] for call in turn["calls"]]
    given = [call["arguments"] for call in calls if isinstance(call["arguments"], dict)]
    return "\n".join(value for arguments in given for value in arguments.values() if isinstance(value, str))


# ---- embeddings


def ngram_embedding(texts: list[str]) -> Tensor:
    """Return square roots of the counts of each text's one to three tokens in a row, hashed to `DIMENSIONS` places.

    It is the same on every machine, needs no weights, and distinguishes code that differs in a name or a number.

    Example: "x = 1" has x, =, 1, "x =", "= 1", "x = 1"; beside "x = 2" it shares three of six: cosine 0.5
    """
    rows = torch.zeros(len(texts), DIMENSIONS)
    for row, text in zip(rows, texts, strict=True):
        for place, number in Counter(map(_place, _ngrams(text))).items():
            row[place] = number**0.5
    return rows


def _ngrams(text: str) -> list[str]:
    tokens = _TOKEN.findall(text)
    return [" ".join(tokens[i : i + n]) for n in range(1, NGRAMS + 1) for i in range(len(tokens) - n + 1)]


def _place(ngram: str) -> int:
    return zlib.crc32(ngram.encode("utf-8", "surrogatepass")) % DIMENSIONS  # Python's own hash varies by process


def find_embedding(name: str) -> Embedding:
    """Return the embedding for "ngrams", the import path of a function, or the name of a sentence encoder."""
    if name == NGRAMS_NAME:
        return ngram_embedding
    return load(name, [Path.cwd()], "embedding", (NGRAMS_NAME, "auto")) if ":" in name else _encoder(name)


def has_small_encoder() -> bool:
    """Whether `ENCODER` can be used without a download."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return False
    try:
        _encoder(ENCODER, local_files_only=True)
    except (ValueError, OSError) as error:  # it cannot be imported, or its weights are not here
        logger.info(f"{ENCODER} is not used: {error}")
        return False
    return True


@cache
def _encoder(name: str, **settings: Any) -> Embedding:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            f"shaping_embedding: {name!r} needs sentence-transformers (pip install sentence-transformers). 'ngrams' "
            "needs no package; a function of your own is named as file.py:function."
        ) from error
    try:
        encoder = SentenceTransformer(name, **settings)
    except (OSError, ValueError) as error:
        raise ValueError(f"shaping_embedding: {name!r} could not be loaded: {error}") from error
    return lambda texts: encoder.encode(texts, convert_to_tensor=True)
