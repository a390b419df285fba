"""a file of passages, one JSON object per line -> each passage by its number, read from the file when it is needed.

    {"id": "0", "contents": "\\"Title\\"\\nText ..."}         Search-R1's and FlashRAG's wiki18_100w.jsonl
    {"id": "0", "title": "Title", "text": "Text ..."}      without an id, the passage's number is used, from 0

A folder of text files is written to such a file first (`cut`).
"""

import json
import os
import weakref
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from pathlib import Path

import numpy as np

from ..errors import shown


MOST_LINE = 2**20  # bytes
PASSAGE_WORDS = 100  # of a passage cut from a text file, as in wiki18_100w
TEXT_FILES = (".txt", ".md")
_MEND = 'Each line must hold an object with "contents", or with "text" and optionally "title". Fix or remove it.'


@dataclass(frozen=True)
class Passage:
    """A passage. `contents` is the title in quotes, a line break, and the text."""

    id: str
    title: str
    contents: str

    @property
    def text(self) -> str:
        return self.contents.partition("\n")[2] if self.title else self.contents


class Corpus:
    """The passages of a file, by number; none are kept in memory. May be read from several threads."""

    def __init__(self, file: Path, offsets: np.ndarray):
        self.file, self._offsets = file, offsets
        self._descriptor = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> Passage:
        start, end = int(self._offsets[number]), int(self._offsets[number + 1])
        line = os.pread(self._descriptor, end - start, start).partition(b"\n")[0]
        return read_passage(line, f"{self.file}, passage {number}", default_id=str(number))

    def __iter__(self) -> Iterator[Passage]:
        return (self[number] for number in range(len(self)))


def scan(file: Path) -> np.ndarray:
    """Each passage's offset, and the end of the last. Raises ValueError at the first line that is not a passage."""
    offsets, ids = array("q"), array("Q")
    at = 0
    with file.open("rb") as lines:
        for number in count(1):
            line = lines.readline(MOST_LINE + 1)
            if not line:
                break
            if len(line) > MOST_LINE:
                raise ValueError(
                    f"{file}, line {number} is longer than {MOST_LINE:,} bytes: a passage has about a hundred words. "
                    "Cut the document into passages, one per line."
                )
            if line.strip():
                passage = read_passage(line, f"{file}, line {number}", default_id=str(len(offsets)))
                offsets.append(at)
                ids.append(int.from_bytes(blake2b(passage.id.encode("utf-8", "replace"), digest_size=8).digest()))
            at += len(line)
    if not offsets:
        raise ValueError(f"{file} holds no passage. {_MEND}")
    offsets.append(at)
    found = np.frombuffer(offsets, dtype=np.int64)
    _check_ids(Corpus(file, found), np.frombuffer(ids, dtype=np.uint64))
    return found


def _check_ids(corpus: Corpus, ids: np.ndarray) -> None:
    order = np.argsort(ids, kind="stable")
    for place in np.flatnonzero(ids[order][1:] == ids[order][:-1]):
        first, second = corpus[int(order[place])], corpus[int(order[place + 1])]
        if first.id and first.id == second.id:
            lines = [_line_of(corpus, int(order[place + step])) for step in (0, 1)]
            raise ValueError(
                f"{corpus.file}, lines {lines[0]} and {lines[1]} both have the id {first.id!r}. Give each passage "
                "its own id, or remove one."
            )


def _line_of(corpus: Corpus, number: int) -> int:
    with corpus.file.open("rb") as lines:
        left, breaks = int(corpus._offsets[number]), 0
        while left:
            block = lines.read(min(left, 2**20))
            left, breaks = left - len(block), breaks + block.count(b"\n")
    return breaks + 1


def read_passage(line: bytes, where: str, default_id: str) -> Passage:
    """Read a line as a passage. Raises a ValueError that says what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}. {_MEND}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} does not hold an object. {_MEND}")
    texts = {key: row.get(key) or "" for key in ("contents", "title", "text")}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{where}: {key} is {shown(text)}, which is not text. {_MEND}")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{where}: {key} holds half a character (a lone surrogate). Fix or remove the line.")
    if not (texts["contents"] or texts["text"]).strip():
        raise ValueError(f"{where} has no text; its keys are {', '.join(row) or 'none'}. {_MEND}")
    id = default_id if row.get("id") is None else str(row["id"])
    if texts["contents"]:
        first, broken, _ = texts["contents"].partition("\n")
        return Passage(id, texts["title"] or (_unquoted(first) if broken else ""), texts["contents"])
    title = texts["title"]
    return Passage(id, title, f'"{title}"\n{texts["text"]}' if title else texts["text"])


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


# ---- a folder of text files


def text_files(folder: Path) -> list[Path]:
    """The text files below a folder, in the order of their names."""
    found = sorted(file for file in folder.rglob("*") if file.suffix in TEXT_FILES and file.is_file())
    if not found:
        raise ValueError(f"{folder} holds no file that ends with {' or '.join(TEXT_FILES)}.")
    return found


def cut(folder: Path, target: Path) -> None:
    """Write the text files of a folder as passages of a hundred words, with the file's name as their title."""
    with target.open("w", encoding="utf-8") as lines:
        for file in text_files(folder):
            try:
                words = file.read_text(encoding="utf-8").split()
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not text in UTF-8: {error}. Convert or remove it.") from None
            for start in range(0, len(words), PASSAGE_WORDS):
                id = f"{file.relative_to(folder)}#{start // PASSAGE_WORDS}"
                row = {"id": id, "title": file.stem, "text": " ".join(words[start : start + PASSAGE_WORDS])}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
