"""what a tool returned or raised -> text, without the secrets of the environment."""

import inspect
import os
import re
from collections.abc import Mapping
from typing import Any

from ..secret_names import SHORTEST_SECRET, names_secret


NOTHING = "The tool returned nothing."
# Types of blocks, in the words of chat templates and of servers; a list of other things with a "type" is data.
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
    """What a tool raised in a process of its own: what is told of it, and the names of its classes."""

    def __init__(self, text: str, kinds: list[str]):
        super().__init__(text)
        self.kinds = frozenset(kinds)


class ToolDown(Exception):
    """For tools to raise: what the call needs is not there just now, which is no fault of the call. If the tool has a
    `check`, it is waited for, and the call made once more."""


def as_text(value: Any) -> str:
    r"""What the policy reads: text as it is, bytes as UTF-8, blocks of text one below the other, the rest as `str`.

    What is no Unicode (lone surrogates, broken UTF-8) is replaced. A block that is not text raises a TypeError, as
    does a coroutine that nobody awaited.

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
    """What the policy is told of an exception.

    Example: KeyError("Velm") -> "Error: KeyError: 'Velm'"
    """
    try:
        text = str(error)
    except BaseException as unprintable:  # noqa: BLE001  # even if that would exit: it is the tool's exception
        text = f"(its text could not be made: {type(unprintable).__name__})"
    if isinstance(error, ToolFailed):
        return text  # described where it was raised
    return as_text(f"Error: {type(error).__name__}: {text}" if text else f"Error: {type(error).__name__}")


def class_names(kind: type[BaseException]) -> list[str]:
    """An exception's class and those that it is derived from.

    Example: KeyError -> ["builtins.KeyError", "builtins.LookupError", "builtins.Exception", ...]
    """
    return [f"{one.__module__}.{one.__qualname__}" for one in kind.__mro__]


def is_one_of(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    """`isinstance`, also for what was raised in another process."""
    if isinstance(error, ToolFailed):
        return not error.kinds.isdisjoint(name for kind in kinds for name in class_names(kind)[:1])
    return isinstance(error, kinds)


class Redaction:
    """Puts the name of an environment variable in the place of its value, where that looks like a secret.

    A tool that echoes its key (in an error of its server, say) would otherwise put it into prompts, records and
    caches. Secrets are the values of variables whose name says so, addresses with a password in them, and long
    mixtures of letters and digits.
    """

    _LOOKS = re.compile(r"(?=[^\d]*\d)(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9_\-+=.]{24,}|\w+://[^/\s]*:[^/\s]+@\S+")

    def __init__(self, environment: Mapping[str, str] = os.environ):
        self._environment = environment

    def __call__(self, text: str) -> str:
        # Read anew each time: a tool may load its key when it is first called.
        for name, value in sorted(self._secrets(), key=lambda item: -len(item[1])):
            text = text.replace(value, f"[{name}]")
        return text

    def _secrets(self) -> list[tuple[str, str]]:
        # By a list of names: another thread may add and remove variables meanwhile.
        values = [(name, self._environment.get(name, "")) for name in list(self._environment)]
        return [
            (name, value)
            for name, value in values
            if len(value) >= SHORTEST_SECRET and (names_secret(name) or self._LOOKS.fullmatch(value))
        ]
