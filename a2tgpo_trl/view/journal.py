"""what is known about runs, by name -> what has changed since a reader last asked."""

import json
from typing import Any


class Journal:
    """JSON texts by run, kind and key, in the order of their last changes, which are numbered.

    Example: put(0, "groups", "5.1.0.1", {}) -> since(0, 99) is ['[0,"groups","5.1.0.1",{}]'], 1; since(1, 99) is [], 1
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[int, str, str], tuple[int, str]] = {}
        self.last = 0  # number of the last change

    def put(self, run: int, kind: str, key: object, value: Any) -> None:
        """Set a value; nothing changes if it is known already. None: it no longer exists."""
        name = (run, kind, str(key))
        text = json.dumps([*name, value], allow_nan=False, separators=(",", ":"))
        if name in self._entries and self._entries[name][1] == text:
            return
        self._entries.pop(name, None)
        self.last += 1
        self._entries[name] = (self.last, text)

    def forget(self, run: int) -> None:
        """Remove all that is known about a run."""
        self._entries = {name: entry for name, entry in self._entries.items() if name[0] != run}

    def since(self, number: int, most_characters: int) -> tuple[list[str], int]:
        """Return the texts that changed after this number, the earliest first, and the number of the last of them.

        If they are too many, stop after the text that exceeds `most_characters`.
        """
        newer: list[tuple[int, str]] = []
        for entry in reversed(self._entries.values()):
            if entry[0] <= number:
                break
            newer.append(entry)
        texts: list[str] = []
        for last, text in reversed(newer):
            if most_characters < 0:
                break
            texts.append(text)
            number, most_characters = last, most_characters - len(text)
        return texts, number
