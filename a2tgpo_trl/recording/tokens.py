"""a tokenizer, tokens -> the text of each: in their order, what all of them are together."""

import copy
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


HALF = "\ufffd"  # what a tokenizer writes for a part of a character
MOST_PARTS = 4  # bytes of a character, each of which may be a token


class TokenTexts:
    """Looks tokens up, once each."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        # Looked up on another thread than the tokenizer's own, which threads may not share.
        self._tokenizer = copy.deepcopy(tokenizer)
        # A first token may lose its space. None of these is the first.
        self._before = self._tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._text_before = self._decode(self._before)
        self._known: dict[tuple[int, ...], str] = {}

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; of a character that several make up, with the last of them.

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
