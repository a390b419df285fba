"""texts and tokens of a record -> the same without the values of secrets, and without what strict readers refuse."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any


SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 8  # characters: a shorter value may be any word


class Masks:
    """Puts the names of secrets in the place of their values."""

    def __init__(self, environment: Mapping[str, str]):
        self._names = {
            value: name for name, value in environment.items() if SECRET.search(name) and len(value) >= SHORTEST_SECRET
        }
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if self._names else None

    def __call__(self, value: Any) -> Any:
        """A value for JSON without secrets; half characters stand there by their codes, what is no number as None.

        Example: API_KEY=abcdefgh12 -> ["the key is abcdefgh12"] becomes ["the key is <API_KEY>"]
        """
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else None  # JSON has no NaN
        if isinstance(value, dict):
            return {_whole(key): self(inside) for key, inside in value.items()}
        return [self(inside) for inside in value] if isinstance(value, (list, tuple)) else value

    def _text(self, text: str) -> str:
        whole = _whole(text)
        return whole if self._pattern is None else self._pattern.sub(lambda found: f"<{self._names[found[0]]}>", whole)

    @property
    def any(self) -> bool:
        """Whether there are secrets."""
        return self._pattern is not None

    def of_tokens(self, ids: Sequence[int], texts: Sequence[str]) -> tuple[list[int | None], list[str]]:
        """Tokens without secrets, which lie over several of them: their ids are None.

        Example: API_KEY=abcdefgh12; 7 "is abcd", 8 "efgh12" -> None "<API_KEY>", None ""
        """
        shown: list[int | None] = list(ids)
        written = list(texts)
        if self._pattern is None:
            return shown, written
        starts = [0]
        for text in texts:
            starts.append(starts[-1] + len(text))
        for found in self._pattern.finditer("".join(texts)):
            inside = [i for i in range(len(texts)) if starts[i] < found.end() and starts[i + 1] > found.start()]
            for place, i in enumerate(inside):
                shown[i], written[i] = None, f"<{self._names[found[0]]}>" if place == 0 else ""
        return shown, written


def masks(environment: Mapping[str, str]) -> Masks:
    """Those of the secrets of an environment: variables whose names speak of one."""
    return Masks(environment)


def _whole(text: Any) -> Any:
    """A policy can write half a character, which no file holds as it is. What is no text is left as it is."""
    if not isinstance(text, str) or text.isascii():
        return text
    return text.encode("utf-8", errors="backslashreplace").decode()
