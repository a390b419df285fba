"""texts and tokens of a record -> the same with secrets masked, and without values that strict readers refuse.

Values of eight characters or more are masked if the name of their environment variable suggests a secret
(`names_secret`). So is the password in a variable that is a URL, such as postgres://u:secret@host; a shorter password
is masked only where it follows its user. Secrets are found as they are, and as JSON and Python write them between
quotes, in texts, in tokens and in keys below the top level, because a policy chooses the names of arguments. Keys at
the top level are names of columns and stay.

Not masked are secrets from other variables, from files or from a data set, shorter ones, parts of a secret, and
secrets that are written in another way, such as base64.
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
    """Replaces the values of secrets by their names."""

    def __init__(self, environment: Mapping[str, str]):
        """Mask the secrets of an environment."""
        self._shown = {
            form: shown
            for name, value in environment.items()
            for secret, shown in _secrets_in(name, value)
            for form in _forms(secret)
        }
        longest_first = sorted(self._shown, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if self._shown else None

    def __call__(self, value: Any) -> Any:
        """Return a value for JSON with secrets masked, half characters as their codes, and NaN and infinity as None.

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
        """Return tokens with secrets masked; a secret may span several tokens, whose ids become None.

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
    """The texts that a variable makes secret, each with its replacement."""
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
    """Escape half characters, which a policy can write but no file can hold; leave anything but text unchanged."""
    if not isinstance(text, str) or text.isascii():
        return text
    return text.encode("utf-8", errors="backslashreplace").decode()
