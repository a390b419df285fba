"""what a tool returned or raised -> text, without the secrets of the environment."""

import inspect
import os
import re
from collections.abc import Mapping
from typing import Any

from ..secret_names import SHORTEST_SECRET, names_secret


NOTHING = "The tool returned nothing."
# Types of blocks, as named by chat templates and servers; a list of other things with a "type" is data.
BLOCKS = (
    "text",
    "image",
    "image_url",
    "input_image",
    "audio",
    "audio_url",
    "input_audio",
    "video",
    "video_url",
    "file",
)


class ToolFailed(Exception):
    """An exception that a tool raised in a separate process: its text, and the names of its classes."""

    def __init__(self, text: str, kinds: list[str]):
        super().__init__(text)
        self.kinds = frozenset(kinds)


class ToolDown(Exception):
    """For tools to raise when something the call needs is missing at present, which is not the call's fault. If the
    tool has a `check`, the run waits for it and makes the call once more."""


def as_text(value: Any) -> str:
    r"""The text that the policy reads: text as it is, bytes as UTF-8, text blocks joined by line breaks, else `str`.

    Invalid Unicode (lone surrogates, broken UTF-8) is replaced. A block that is not text raises a TypeError, as does a
    coroutine that nobody awaited.

    Example: None -> "The tool returned nothing."; {"a": 1} -> "{'a': 1}"; b"caf\xe9" -> "caf\ufffd"
    """
    if value is None:
        return NOTHING
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", errors="replace")
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and _is_block(part) for part in value):
        return "\n".join(map(_block, value))
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError("the tool is a plain function that returned a coroutine; write it with `async def`")
    return str(value).encode("utf-8", errors="replace").decode("utf-8")


def _is_block(part: Mapping[str, Any]) -> bool:
    return part.get("type") in BLOCKS


def _block(part: Mapping[str, Any]) -> str:
    if part["type"] != "text":
        raise TypeError(f"the tool returned a block of type {part['type']!r}; this policy reads text only")
    return as_text(part.get("text"))


def describe(error: BaseException) -> str:
    """What the policy is told about an exception.

    Example: KeyError("Velm") -> "Error: KeyError: 'Velm'"
    """
    try:
        text = str(error)
    except BaseException as unprintable:  # noqa: BLE001  # the tool's exception may raise anything, even SystemExit
        text = f"(its text could not be made: {type(unprintable).__name__})"
    if isinstance(error, ToolFailed):
        return text  # described where it was raised
    return as_text(f"Error: {type(error).__name__}: {text}" if text else f"Error: {type(error).__name__}")


def class_names(kind: type[BaseException]) -> list[str]:
    """The names of an exception's class and its base classes.

    Example: KeyError -> ["builtins.KeyError", "builtins.LookupError", "builtins.Exception", ...]
    """
    return [f"{one.__module__}.{one.__qualname__}" for one in kind.__mro__]


def is_one_of(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    """`isinstance`, also for exceptions raised in another process."""
    if isinstance(error, ToolFailed):
        return not error.kinds.isdisjoint(name for kind in kinds for name in class_names(kind)[:1])
    return isinstance(error, kinds)


class Redaction:
    """Replaces the value of an environment variable by the variable's name, if the value looks like a secret.

    Otherwise a tool that echoes its key (such as in its server's error) would put it into prompts, records and caches.
    Secrets are the values of variables whose name says so, addresses that contain a password, and long mixtures of
    letters and digits.
    """

    _LOOKS = re.compile(r"(?=[^\d]*\d)(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9_\-+=.]{24,}|\w+://[^/\s]*:[^/\s]+@\S+")

    def __init__(self, environment: Mapping[str, str] = os.environ):
        self._environment = environment

    def __call__(self, text: str) -> str:
        # Read each time: a tool may load its key when it is first called.
        for name, value in sorted(self._secrets(), key=lambda item: -len(item[1])):
            text = text.replace(value, f"[{name}]")
        return text

    def _secrets(self) -> list[tuple[str, str]]:
        # From a list of names: another thread may add and remove variables meanwhile.
        values = [(name, self._environment.get(name, "")) for name in list(self._environment)]
        return [
            (name, value)
            for name, value in values
            if len(value) >= SHORTEST_SECRET and (names_secret(name) or self._LOOKS.fullmatch(value))
        ]
