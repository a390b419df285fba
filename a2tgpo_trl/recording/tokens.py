"""a tokenizer, tokens -> the text of each, which joined give the text of all."""

import copy
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


HALF = "\ufffd"  # what a tokenizer writes for a part of a character
MOST_PARTS = 4  # bytes of a character, each of which may be a token


class TokenTexts:
    """Decodes tokens, each only once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        # Used on another thread than the original, and threads may not share a tokenizer.
        self._tokenizer = copy.deepcopy(tokenizer)
        # The first token of a text may lose its space, so another token is put before those decoded.
        self._before = self._tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._text_before = self._decode(self._before)
        self._known: dict[tuple[int, ...], str] = {}

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token; a character made of several tokens goes to the last of them.

        Example: "a" and the two bytes of "é" -> ["a", "", "é"]
        """
        texts: list[str] = []
        parts: tuple[int, ...] = ()
        for number in ids:
            parts = (*parts, number)
            text = self._of(parts)
            if text.endswith(HALF) and len(parts) < MOST_PARTS:
                texts.append("")
                continue
            texts.append(text)
            parts = ()
        if parts:
            texts[-1] = self._of(parts)
        return texts

    def _of(self, ids: tuple[int, ...]) -> str:
        if ids not in self._known:
            self._known[ids] = self._decode([*self._before, *ids]).removeprefix(self._text_before)
        return self._known[ids]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
