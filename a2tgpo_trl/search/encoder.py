"""texts -> vectors whose inner product measures their similarity, by a sentence-transformers model."""

import json
import threading
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np


PASSAGE_PROMPTS = ("document", "passage", "corpus")  # names that models use for the prefix of passages


class Encoder(Protocol):
    """The interface that dense search needs from an encoder.

    If `passage_settings` differ, so do the vectors of passages; likewise `query_settings` for queries. `arguments`
    make the same `SentenceEncoder` again.
    """

    passage_settings: dict[str, Any]
    query_settings: dict[str, Any]
    arguments: dict[str, Any]

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of length 1, in 32 bits."""

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of length 1, in 32 bits."""


class SentenceEncoder:
    """A sentence-transformers model. May be used from several threads, which wait for each other.

    `query_prefix` and `passage_prefix` are put before each text ("query: " and "passage: " for E5); by default the
    model's own prompts, if it has any. `max_tokens` cuts each text, by default at the model's limit.
    """

    def __init__(
        self,
        model: str,
        *,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        max_tokens: int | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ):
        for name, value in (("max_tokens", max_tokens), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"An encoder's {name} must be at least 1; got {value}.")
        self._model, self._batch_size = _load(model, device), batch_size
        self._query_prefix = self._prefix(query_prefix, ("query",))
        self._passage_prefix = self._prefix(passage_prefix, PASSAGE_PROMPTS)
        self._one_at_a_time = threading.Lock()  # tokenizers that cut and pad cannot be shared
        if max_tokens is not None:
            self._cut_at(max_tokens)
        self.passage_settings = {
            "encoder": _fingerprint(self._model),
            "passage_prefix": self._passage_prefix,
            "max_tokens": self._model.max_seq_length,
        }
        self.query_settings = {"query_prefix": self._query_prefix}
        self.arguments = {
            "model": str(Path(model).resolve()) if Path(model).is_dir() else model,
            "query_prefix": self._query_prefix,
            "passage_prefix": self._passage_prefix,
            "max_tokens": max_tokens,
        }

    def _prefix(self, given: str | None, names: Sequence[str]) -> str:
        if given is not None:
            return given
        return next((self._model.prompts[name] for name in names if self._model.prompts.get(name)), "")

    def _cut_at(self, max_tokens: int) -> None:
        """Set the cut and try it immediately: a build might meet the first long text only after hours."""
        marks = self._model.tokenizer.num_special_tokens_to_add()
        if max_tokens <= marks:
            raise ValueError(
                f"max_tokens must be more than {marks}, the number of tokens that the encoder adds to each text; got "
                f"{max_tokens}."
            )
        self._model.max_seq_length = max_tokens
        try:
            self.passages(["a " * max_tokens])
        except (IndexError, RuntimeError) as error:  # beyond its positions, or its memory
            raise ValueError(
                f"The encoder cannot read texts of {max_tokens:,} tokens (max_tokens): {error}"
            ) from error

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(self._model.encode_document, texts, self._passage_prefix)

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(self._model.encode_query, texts, self._query_prefix)

    def _encode(self, encode: Any, texts: Sequence[str], prefix: str) -> np.ndarray:
        with self._one_at_a_time:
            vectors = encode(
                list(texts),
                prompt=prefix,
                batch_size=self._batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return np.asarray(vectors, dtype=np.float32)


def _load(model: str, device: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise missing(error) from error
    try:
        return SentenceTransformer(model, device=device)
    except Exception as error:  # from its files, the hub, or the device
        where = "" if device is None else f" on {device}"
        raise ValueError(
            f"{model} cannot be loaded as an encoder{where} ({type(error).__name__}: {error}). Name a folder or a "
            "model on the hub that sentence-transformers reads (--encoder), and a device of this machine (--device)."
        ) from error


def missing(error: ImportError) -> ValueError:
    return ValueError(f"Dense search needs {error.name}: pip install 'a2tgpo_trl[dense]'")


def _fingerprint(model: Any) -> str:
    """A digest that is equal for equal weights and pooling, wherever the model is stored."""
    import torch

    digest = blake2b(digest_size=16)
    for module in model:
        digest.update(f"{type(module).__name__} {json.dumps(module.get_config_dict(), sort_keys=True)}".encode())
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weights.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
