"""documents -> an index in this process -> a search tool that a policy calls."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import bm25s
import numpy as np

from .settings import tool


NOTHING_FOUND = "No results."
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words that are compared: in lower case, without punctuation.

    Example: "The mayor of Velm." -> ["the", "mayor", "of", "velm"]
    """
    return _WORD.findall(text.lower())


class BM25Index:
    """Documents ranked by BM25 (Lucene's form, by bm25s). Equal scores keep the documents' order, on any machine."""

    def __init__(self, documents: Sequence[str]):
        if not documents:
            raise ValueError("A search index needs at least one document.")
        self.documents = list(documents)
        self._scorer = bm25s.BM25()
        self._scorer.index([words(text) for text in self.documents], show_progress=False)

    def search(self, query: str, top_k: int) -> list[str]:
        """The best documents that share a word with the query, best first."""
        known = [word for word in words(query) if word in self._scorer.vocab_dict]
        if not known:
            return []
        # Rounded, so that the last bit of a sum, which differs between processors, does not decide the order.
        scores = np.round(self._scorer.get_scores(known), 4)
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [self.documents[i] for i in best if scores[i] > 0]


def digest(texts: Iterable[str]) -> str:
    """A digest of texts in their order."""
    return blake2b(json.dumps(list(texts)).encode(), digest_size=8).hexdigest()


def search_tool(documents: Sequence[str], top_k: int = 3) -> Callable[[str], str]:
    """A tool named `search` over these documents."""
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1; got {top_k}.")
    index = BM25Index(documents)

    @tool(version=f"{digest(documents)}, {top_k} shown")
    def search(query: str) -> str:
        """Search the encyclopedia.

        Args:
            query: What to look for.

        Returns:
            The documents that fit best.
        """
        return "\n".join(index.search(query, top_k)) or NOTHING_FOUND

    return search
