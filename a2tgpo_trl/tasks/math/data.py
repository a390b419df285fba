r"""a folder of files as they are published, or the hub -> rows with `prompt` and `answer`.

GSM8K's columns are `question` and `answer`, which ends in "#### 42"; MATH's are `problem` and `solution`, with the
answer in the last `\boxed{}`, or in a separate column `answer`.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError

from ...rewards.text import last_boxed


logger = logging.getLogger(__name__)

KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPLITS = ("train", "test")

_UNBRACED = re.compile(r"\\(?:boxed|fbox)\s+([^\s$.]+)")


def load_splits(path: str | Path | None, hub_name: str, config: str | None) -> Mapping[str, Dataset]:
    """The splits "train" and "test": from the files below a folder, or from the hub if no folder is named."""
    if path is None:
        return _of_hub(hub_name, config)
    folder = Path(path).expanduser()
    if config is not None and (folder / config).is_dir():
        folder = folder / config  # the hub's folder has one per config, beside another version of the same questions
    return _of_folder(folder)


def _of_hub(name: str, config: str | None) -> Mapping[str, Dataset]:
    try:
        splits = load_dataset(name, config)
    except (OSError, ValueError, DatasetsError) as error:  # no connection; offline and not in the cache; bad files
        raise ValueError(
            f"The data set {name} could not be loaded from the hub: {error}\nWithout a connection, download it "
            f"elsewhere (hf download {name} --repo-type dataset --local-dir FOLDER), and name the folder: "
            "task_kwargs: {path: FOLDER}."
        ) from error
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise ValueError(f"The data set {name} on the hub has no split {missing[0]!r}; it has {', '.join(splits)}.")
    return splits


def _of_folder(folder: Path) -> Mapping[str, Dataset]:
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. It must hold the files of the data set: {_WANTED}.")
    return {split: _of_files(folder, split) for split in SPLITS}


_WANTED = f"{' and '.join(f'{split}*' for split in SPLITS)}, in {', '.join(KINDS)}, or in folders of these names"
_SPLIT = re.compile(rf"({'|'.join(SPLITS)})(?=[-_.]|$)")
_SHARD = re.compile(r"-\d+-of-\d+")


def split_of(file: Path) -> str | None:
    """The split that the name of a file begins with, or else that of the nearest folder that has one, or None.

    Example: main/train-00000-of-00001.parquet, train/algebra/1.json, train_test/train.jsonl -> "train"
    """
    found = (_SPLIT.match(part) for part in reversed(file.parts))
    return next((match[1] for match in found if match), None)


def _of_files(folder: Path, split: str) -> Dataset:
    """All files of a split."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix in KINDS and split_of(file.relative_to(folder)) == split
    ]
    kinds = {KINDS[file.suffix] for file in files}
    if len(kinds) != 1:
        found = "no file" if not kinds else f"files of several kinds ({', '.join(sorted(kinds))})"
        raise ValueError(f"{folder} has {found} for the split {split!r}. It must hold {_WANTED}.")
    # If files hold many problems, a split is one file or its shards; others are another version of the same questions.
    whole = sorted({_SHARD.sub("", str(file.relative_to(folder))) for file in files if file.suffix != ".json"})
    if len(whole) > 1:
        raise ValueError(
            f"{folder} has several files for the split {split!r}: {', '.join(whole)}. Keep only one of them there."
        )
    return load_dataset(kinds.pop(), data_files=[str(file) for file in files], split="train")


def warn_of_overlap(train: Iterable[str], test: Iterable[str]) -> None:
    """Warn of test questions that are also trained on: they make the scores look better than they are."""
    common = len(set(train) & set(test))
    if common:
        logger.warning(f"{common} questions of the test set are also in the training set.")


def questions(rows: Dataset, column: str, answer_of: Callable[[Mapping[str, Any]], str | None], prompt: Callable):
    """Convert rows to the trainer's form. Raises an error that names a row without an answer."""
    if column not in rows.column_names:
        raise ValueError(f"The data set has no column {column!r}; it has {', '.join(rows.column_names)}.")
    made = []
    for i, row in enumerate(rows):
        answer = answer_of(row)
        if not answer:
            raise ValueError(f"No answer was found in row {i} of the data set: {str(row)[:400]}")
        made.append({"prompt": prompt(row[column]), "answer": answer, **{k: row[k] for k in KEPT if k in row}})
    return Dataset.from_list(made)


KEPT = ("level", "type", "subject")  # of MATH, to group scores by


def gsm8k_answer(row: Mapping[str, Any]) -> str | None:
    """The text after the last "####", without commas.

    Example: "48 / 2 = 24 ... #### 1,072" -> "1072"
    """
    _, mark, answer = str(row.get("answer", "")).rpartition("####")
    return answer.strip().replace(",", "") if mark else None


def math_answer(row: Mapping[str, Any]) -> str | None:
    r"""The column `answer`, or else the content of the last box in the column `solution`.

    Example: r"so $x = \boxed{\frac{1}{2}}$." -> r"\frac{1}{2}"; r"there are $\boxed 7$." -> "7"
    """
    if row.get("answer"):
        return str(row["answer"]).strip()
    solution = str(row.get("solution", ""))
    unbraced = _UNBRACED.findall(solution)
    return last_boxed(solution) or (unbraced[-1] if unbraced else None)
