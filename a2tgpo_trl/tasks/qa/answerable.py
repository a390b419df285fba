"""questions, a search -> which of them the corpus can answer at all -> a file that the task reads.

A question is answerable if an accepted answer occurs in one of the passages that are found for the question itself, or
for a title that supports it. "Yes" and "no" do not occur in passages as answers: such a question is answerable if it
has supporting titles, and each of them is found. The file has a line for each question that was tried:

    {"set": "hotpotqa", "id": "dev_0", "answerable": true}
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...rewards.text import VERDICTS, normalize_answer, whole_words
from ...search.corpus import Passage
from ...search.retriever import check_query
from ...search.tool import Search, SearchServerDown
from .questions import Question, rows_of_file


SCHEMA = "set, id and answerable (true or false)"
QUESTIONS_AT_ONCE = 64
PASSAGES_AT_ONCE = 4_000  # per request; servers take more
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds until a server that is down is asked again

Answerable = dict[tuple[str, str], bool]  # by set and id


def try_questions(questions: Sequence[Question], find: Search, top_k: int, first: int = 0) -> Iterator[list[bool]]:
    """Whether each question from number `first` on is answerable by the best `top_k` passages of each query.

    Yields the verdicts in parts.
    """
    for start in range(first, len(questions), QUESTIONS_AT_ONCE):
        part = questions[start : start + QUESTIONS_AT_ONCE]
        queries = list(dict.fromkeys(query for question in part for query in _queries(question)))
        found = _found(queries, find, top_k)
        yield [is_answerable(one, found[one.text], [found[title] for title in one.titles]) for one in part]


def _queries(question: Question) -> list[str]:
    return [question.text, *question.titles]


def _found(queries: Sequence[str], find: Search, top_k: int) -> dict[str, list[Passage]]:
    at_once = max(1, PASSAGES_AT_ONCE // top_k)
    parts = [queries[start : start + at_once] for start in range(0, len(queries), at_once)]
    return {query: found for part in parts for query, found in zip(part, find(part, top_k), strict=True)}


def is_answerable(question: Question, found: Sequence[Passage], of_titles: Sequence[Sequence[Passage]]) -> bool:
    """Whether the passages found for the question and for each of its titles answer it.

    Example: "1815" in "The bridge of 1815 ..." -> yes, in "... of 18150 ..." -> no
    """
    if {normalize_answer(answer) for answer in question.answers} & {*VERDICTS}:
        titles = zip(question.titles, of_titles, strict=True)
        named = [any(_words(one.title) == _words(title) for one in passages) for title, passages in titles]
        return bool(named) and all(named)
    texts = [passage.contents for passages in (found, *of_titles) for passage in passages]
    normalized = [_words(text) for text in texts]
    words = [_words(answer) for answer in question.answers if normalize_answer(answer)]
    # "The The" and "?" normalise to nothing, so they are searched for unchanged.
    signs = [whole_words(answer) for answer in question.answers if not normalize_answer(answer)]
    return any(one in text for one in words for text in normalized) or any(
        one.search(text) for one in signs for text in texts
    )


def _words(text: str) -> str:
    """The normalised words, with a space before the first and after the last."""
    return f" {normalize_answer(text)} "


def check_questions(questions: Sequence[Question]) -> None:
    """Raise an error unless each question can be searched for, and its set and id are unique."""
    places: dict[tuple[str, str], str] = {}
    for question in questions:
        for query in _queries(question):
            try:
                check_query(query)
            except ValueError as error:
                raise ValueError(f"{question.where}: {error}") from None
        other = places.setdefault((question.set, question.id), question.where)
        if other != question.where:
            raise ValueError(
                f"{other} and {question.where} both have the id {question.id!r} in {question.set}, so the file could "
                "not tell them apart. Give each question its own id."
            )


def asked_again(find: Search, patience: float, tell: Callable[[str], None]) -> Search:
    """The same search, which waits up to `patience` seconds for a server that does not answer."""

    def search(queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        end, wait = time.monotonic() + patience, FIRST_WAIT
        while True:
            try:
                return find(queries, top_k)
            except SearchServerDown as error:
                left = end - time.monotonic()
                if left <= 0:
                    raise
                if wait == FIRST_WAIT:
                    tell(f"{error}. Retrying for {patience:g} seconds.")
            time.sleep(min(wait, LONGEST_WAIT, left))
            wait *= 2

    return search


# ---- verdicts as they come, so that an interrupted run can go on


def digest(questions: Iterable[Question]) -> str:
    """A digest that is equal for the same questions in the same order."""
    found = hashlib.sha256()
    for question in questions:
        found.update(json.dumps(asdict(question) | {"where": ""}).encode())
    return found.hexdigest()[:16]


def begin(file: Path, settings: Mapping[str, Any]) -> list[bool]:
    """The verdicts that an earlier run with these settings left in a file. Makes the file if it is missing.

    Its first line holds the settings, and each further line a verdict. A partial last line is removed.
    """
    head = json.dumps(settings) + "\n"
    text = file.read_text(errors="replace") if file.exists() else ""
    if head.startswith(text):
        file.write_text(head)
        return []
    if not text.startswith(head):
        raise ValueError(
            f"{file} was started with other questions or another search. Remove it, or name another file (--output)."
        )
    whole = text[: text.rfind("\n") + 1]
    os.truncate(file, len(whole))
    return [json.loads(line) for line in whole.splitlines()[1:]]


def enter(file: Path, verdicts: Iterable[bool]) -> None:
    """Append the verdicts on the next questions."""
    with file.open("a") as lines:
        lines.writelines(f"{json.dumps(verdict)}\n" for verdict in verdicts)


# ---- the file


def write_answerable(file: Path, questions: Iterable[Question], verdicts: Iterable[bool]) -> None:
    """Write the file, with all lines or not at all."""
    draft = file.with_name(f"{file.name}.draft")
    with draft.open("w", encoding="utf-8") as lines:
        for question, verdict in zip(questions, verdicts, strict=True):
            lines.write(json.dumps({"set": question.set, "id": question.id, "answerable": verdict}) + "\n")
    draft.replace(file)


def read_answerable(file: str | Path) -> Answerable:
    """Read the file's verdict on each question."""
    file = Path(file).expanduser()
    if not file.is_file():
        raise ValueError(f"answerable: there is no file {file}. To make it: a2tgpo answerable.")
    found: Answerable = {}
    for where, row in rows_of_file(file, SCHEMA):
        if not isinstance(row.get("answerable"), bool) or not {"set", "id"} <= row.keys():
            raise ValueError(f"{where} is not an object with {SCHEMA}. Make the file again: a2tgpo answerable.")
        found[str(row["set"]), str(row["id"])] = row["answerable"]
    return found


def say(answerable: Answerable, question: Question) -> bool:
    """The file's verdict on this question. Raises an error if it has none."""
    key = (question.set, question.id)
    if key not in answerable:
        raise ValueError(
            f"answerable: the file has no verdict on {question.set} {question.id} ({question.where}). Make the file "
            "with these sets: a2tgpo answerable --sets ... --train ..."
        )
    return answerable[key]
