"""texts and tokens of a record -> the same without the values of secrets, and without what strict readers refuse.

Masked are values of environment variables, of eight characters or more, whose names speak of a secret
(`names_secret`), and the password of a variable that is a URL with one, such as postgres://u:secret@host: a shorter
password where it stands behind its user. They are found as they are, and as JSON and Python write them between quotes,
in texts, in tokens and in keys below the top level: a policy chooses the names of arguments. Keys at the top are names
of columns, and stay.

Not masked are secrets of other variables, of files or of a data set, shorter ones, parts of one, and one that is
written in another way, as in base64.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from ..secret_names import SHORTEST_SECRET, names_secret


URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*:)([^/\s]+)@")


class Masks:
    """Puts the names of secrets in the place of their values."""

    def __init__(self, environment: Mapping[str, str]):
        """Those of the secrets of an environment."""
        self._shown = {
            form: shown
            for name, value in environment.items()
            for secret, shown in _secrets_in(name, value)
            for form in _forms(secret)
        }
        longest_first = sorted(self._shown, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if self._shown else None

    def __call__(self, value: Any) -> Any:
        """A value for JSON without secrets; half characters stand there by their codes, what is no number as None.

        Example: API_KEY=abcdefgh12 -> ["the key is abcdefgh12"] becomes ["the key is <API_KEY>"]
        """
        if isinstance(value, dict):
            return {_whole(key): self._inside(inside) for key, inside in value.items()}
        return self._inside(value)

    def _inside(self, value: Any) -> Any:
        if isinstance(value, str):
            whole = _whole(value)
            return whole if self._pattern is None else self._pattern.sub(lambda found: self._shown[found[0]], whole)
        if isinstance(value, float):
            return value if math.isfinite(value) else None  # JSON has no NaN
        if isinstance(value, dict):
            return {
                self._inside(key) if isinstance(key, str) else key: self._inside(inside)
                for key, inside in value.items()
            }
        return [self._inside(inside) for inside in value] if isinstance(value, (list, tuple)) else value

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
                shown[i], written[i] = None, self._shown[found[0]] if place == 0 else ""
        return shown, written


def without_url_passwords(text: str, name: str) -> str:
    """Example: "postgres://u:secret@host", "password" -> "postgres://u:<PASSWORD>@host" """
    return URL_PASSWORD.sub(lambda found: f"{found[1]}<{name.upper()}>@", text)


def _secrets_in(name: str, value: str) -> Iterator[tuple[str, str]]:
    """Texts that a variable makes secret, and what is shown in their place."""
    found = [value] if names_secret(name) else []
    for user, password in URL_PASSWORD.findall(value):
        yield f"//{user}{password}@", f"//{user}<{name}>@"
        found += [password, unquote(password)]
    yield from ((secret, f"<{name}>") for secret in found if len(secret) >= SHORTEST_SECRET)


def _forms(secret: str) -> set[str]:
    """A secret as it is, and as JSON and Python write it between quotes."""
    quoted = json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret)
    return {secret, *(text[1:-1] for text in quoted)}


def _whole(text: Any) -> Any:
    """A policy can write half a character, which no file holds as it is. What is no text is left as it is."""
    if not isinstance(text, str) or text.isascii():
        return text
    return text.encode("utf-8", errors="backslashreplace").decode()
