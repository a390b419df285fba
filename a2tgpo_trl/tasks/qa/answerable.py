"""questions, a search -> which of them the corpus can answer at all -> a file that the task reads.

A question is answerable where an accepted answer stands in one of the passages that are found for the question itself,
or for a title that supports it. "Yes" and "no" stand in no passage as answers: such a question is answerable where
there are supporting titles, and each of them is found. The file says it of each question that was tried:

    {"set": "hotpotqa", "id": "dev_0", "answerable": true}
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ...rewards.text import normalize_answer
from ...search.corpus import Passage
from ...search.tool import Search
from .questions import Question, read_object


SCHEMA = "set, id and answerable (true or false)"
AT_ONCE = 64  # questions whose queries go in one request
VERDICTS = {"yes", "no"}

Answerable = dict[tuple[str, str], bool]  # by set and id


def tried(
    questions: Sequence[Question], find: Search, top_k: int, on_progress: Callable[[int], None] = lambda number: None
) -> Iterator[tuple[Question, bool]]:
    """Each question, and whether it is answerable by the best `top_k` passages of each query."""
    for start in range(0, len(questions), AT_ONCE):
        part = questions[start : start + AT_ONCE]
        queries = list(dict.fromkeys(query for question in part for query in (question.text, *question.titles)))
        found = dict(zip(queries, find(queries, top_k), strict=True))
        for question in part:
            yield question, is_answerable(question, found[question.text], [found[title] for title in question.titles])
        on_progress(start + len(part))


def is_answerable(question: Question, found: Sequence[Passage], of_titles: Sequence[Sequence[Passage]]) -> bool:
    """Whether what was found for the question and for each of its titles answers it.

    Example: "1815" in "The bridge of 1815 ..." -> yes, in "... of 18150 ..." -> no
    """
    if VERDICTS & {normalize_answer(answer) for answer in question.answers}:
        titles = zip(question.titles, of_titles, strict=True)
        named = [any(_words(one.title) == _words(title) for one in passages) for title, passages in titles]
        return bool(named) and all(named)
    texts = [_words(passage.contents) for passages in (found, *of_titles) for passage in passages]
    return any(_words(answer) in text for answer in question.answers for text in texts)


def _words(text: str) -> str:
    """Whole words, which a space ends; what normalises to nothing stands for itself."""
    return f" {normalize_answer(text) or text.lower().strip()} "


# ---- the file


def write_answerable(file: Path, found: Iterable[tuple[Question, bool]]) -> None:
    """All lines or none."""
    draft = file.with_name(f"{file.name}.part")
    with draft.open("w", encoding="utf-8") as lines:
        for question, answerable in found:
            line = {"set": question.set, "id": question.id, "answerable": answerable}
            lines.write(json.dumps(line) + "\n")
    draft.replace(file)


def read_answerable(file: str | Path) -> Answerable:
    """What the file says of each question."""
    file = Path(file).expanduser()
    if not file.is_file():
        raise ValueError(f"answerable: there is no file {file}. To make it: a2tgpo answerable.")
    found: Answerable = {}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            row = read_object(line, where, SCHEMA)
            if not isinstance(row.get("answerable"), bool) or not {"set", "id"} <= row.keys():
                raise ValueError(f"{where} is not an object with {SCHEMA}. Make the file anew: a2tgpo answerable.")
            found[str(row["set"]), str(row["id"])] = row["answerable"]
    return found


def say(answerable: Answerable, question: Question) -> bool:
    """What the file says of this question."""
    key = (question.set, question.id)
    if key not in answerable:
        raise ValueError(
            f"answerable: nothing is said of {question.set} {question.id} ({question.where}). Make the file with "
            "these sets: a2tgpo answerable --sets ... --train ..."
        )
    return answerable[key]
