"""a folder of files, or the hub -> the questions of a split, with all accepted answers.

The files are those of FlashRAG's collection, FOLDER/hotpotqa/dev.jsonl and so on, with one JSON object per line:

    {"id": "dev_0", "question": "...", "golden_answers": ["...", ...], "metadata": {...}}
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import shown
from .sets import SETS


logger = logging.getLogger(__name__)

HUB = "RUC-NLPIR/FlashRAG_datasets"
COLUMNS = ("id", "question", "golden_answers")
SCHEMA = "id, question, golden_answers (a list of strings) and, where a set has it, metadata"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """A question, its accepted answers, and titles of the passages that support them, if its set names them."""

    set: str
    id: str
    text: str
    answers: tuple[str, ...]
    titles: tuple[str, ...]
    where: str  # file and line, for messages


def load_split(name: str, split: str, folder: str | Path | None = None, whole: bool = False) -> list[Question]:
    """All questions of a split: from FOLDER/NAME/SPLIT.jsonl, or from the hub if no folder is named.

    Warns if the split's size is not the known one (`SETS`); with `whole`, that is an error.
    """
    if split not in SETS[name].sizes:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(SETS[name].sizes)}.")
    rows = rows_of_hub(name, split) if folder is None else rows_of_file(split_file(Path(folder), name, split))
    questions = [read_question(name, row, where) for where, row in rows]
    check_size(name, split, len(questions), whole)
    return questions


def check_size(name: str, split: str, number: int, whole: bool) -> None:
    """Warn or raise an error if the split does not have its known number of questions."""
    known = SETS[name].sizes[split]
    if number == known:
        return
    message = f"{name} has {number:,} questions in the split {split!r}, instead of {known:,}"
    if number == 0:
        raise ValueError(f"{message}: it is empty. {_fetch(name)}")
    if whole:
        raise ValueError(f"{message}. {_fetch(name)} Or accept an incomplete set (whole: false).")
    logger.warning(f"{message}: scores on it are not comparable with those of others.")


# ---- rows


def split_file(folder: Path, name: str, split: str) -> Path:
    """The file of a split below a folder that holds one folder for each set."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. It must hold {name}/{split}.jsonl.")
    file = folder / name / f"{split}.jsonl"
    if not file.is_file():
        found = sorted(str(other.relative_to(folder)) for other in folder.glob("*/*.jsonl"))
        raise ValueError(f"There is no file {file}. In {folder} there {_are(found)}.\n{_fetch(name)}")
    return file


def _are(files: list[str]) -> str:
    return f"are {', '.join(files)}" if files else "is no SET/SPLIT.jsonl"


def _fetch(name: str) -> str:
    return (
        f"To fetch it: hf download {HUB} --repo-type dataset --include '{name}/*' --local-dir FOLDER, then name the "
        "folder: task_kwargs: {folder: FOLDER}."
    )


def rows_of_file(file: Path, schema: str = SCHEMA) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place. `schema` describes a row in errors."""
    with file.open("rb") as lines:  # as bytes, so that a line with a wrong encoding is an error of that line
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{file}, line {number}"
                yield where, _object(line, where, schema)


def _object(line: bytes, where: str, schema: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}. Each line must hold one object. Fix or remove it.") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} holds {shown(row)}, not an object with {schema}. Fix or remove it.")
    return row


def rows_of_hub(name: str, split: str) -> Iterable[tuple[str, Row]]:
    """The rows of a split on the hub, each with its place."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(HUB, name, split=split)
    except (OSError, ValueError, DatasetsError) as error:  # no connection; offline and not in the cache; bad files
        raise ValueError(f"{name} could not be loaded from the hub ({HUB}): {error}\n{_fetch(name)}") from error
    return ((f"{HUB}, {name}, {split}, row {number}", row) for number, row in enumerate(rows, start=1))


# ---- a row


def read_question(name: str, row: Row, where: str) -> Question:
    """Read a row as a question. Raises a ValueError that says what is wrong with it."""
    for column in COLUMNS:
        if column not in row:
            raise ValueError(f"{where}: there is no {column!r}; there is {', '.join(row)}. A row must have {SCHEMA}.")
    text = row["question"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: the question is {shown(text)}. Fill it in, or remove the line.")
    return Question(
        set=name,
        id=str(row["id"]),
        text=text.strip(),
        answers=_answers(row["golden_answers"], where),
        titles=_titles(row.get("metadata") or {}, where),
        where=where,
    )


def _answers(given: Any, where: str) -> tuple[str, ...]:
    """All accepted answers, in their order, without blank ones, which could not be scored."""
    answers = [given] if isinstance(given, str) else given
    if not isinstance(answers, list):
        raise ValueError(f"{where}: golden_answers is {shown(given)}, not a list of strings. {_MEND}")
    for answer in answers:
        if not isinstance(answer, str):
            raise ValueError(f"{where}: {shown(answer)} among golden_answers is not a string. {_MEND}")
    accepted = tuple(answer.strip() for answer in answers if answer.strip())
    if not accepted:
        raise ValueError(f"{where}: golden_answers is {shown(given)}: there is no answer to score. {_MEND}")
    return accepted


_MEND = 'Write each accepted answer as a string (["1969", "in 1969"]), or remove the line.'


def _titles(metadata: Any, where: str) -> tuple[str, ...]:
    """Titles of the passages that support the answer, each once.

    HotpotQA and 2WikiMultihopQA have them as supporting_facts: {title: [...], sent_id: [...]}, MuSiQue in each step of
    its question_decomposition: {support_paragraph: {title: ...}}. The other sets have none.
    """
    try:
        facts, steps = (metadata.get(key) for key in ("supporting_facts", "question_decomposition"))
        titles = [*(facts["title"] if facts else ()), *(step["support_paragraph"]["title"] for step in steps or ())]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: the supporting titles in metadata cannot be read ({error!r}): {shown(metadata)}. It must have "
            'supporting_facts: {"title": [...]}, question_decomposition: [{"support_paragraph": {"title": ...}}], or '
            "neither."
        ) from None
    return tuple(dict.fromkeys(title for title in map(str, titles) if title.strip()))
