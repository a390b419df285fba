r"""a folder of files as they are published, or the hub -> rows with `prompt` and `answer`.

GSM8K's columns are `question` and `answer`, which ends in "#### 42"; MATH's are `problem` and `solution`, with the
answer in the last `\boxed{}`, or in a column `answer` of its own.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from ...math_answers import last_boxed


KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPLITS = ("train", "test")

_UNBRACED = re.compile(r"\\(?:boxed|fbox)\s+([^\s$.]+)")


def load_splits(path: str | Path | None, hub_name: str, config: str | None) -> Mapping[str, Dataset]:
    """The splits "train" and "test": from the files below a folder, or from the hub where no folder is named."""
    return _of_hub(hub_name, config) if path is None else _of_folder(Path(path).expanduser())


def _of_hub(name: str, config: str | None) -> Mapping[str, Dataset]:
    try:
        splits = load_dataset(name, config)
    except (OSError, ValueError) as error:  # OSError: no connection; ValueError: offline, and not in the cache
        raise ValueError(
            f"The data set {name} could not be loaded from the hub: {error}\nWithout a connection, fetch it elsewhere "
            f"(hf download {name} --repo-type dataset --local-dir FOLDER), and name the folder: "
            "task_kwargs: {path: FOLDER}."
        ) from error
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise ValueError(f"The data set {name} of the hub has no split {missing[0]!r}; it has {', '.join(splits)}.")
    return splits


def _of_folder(folder: Path) -> Mapping[str, Dataset]:
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. It is to hold the files of the data set: {_WANTED}.")
    return {split: _of_files(folder, split) for split in SPLITS}


_WANTED = f"{' and '.join(f'{split}*' for split in SPLITS)}, in {', '.join(KINDS)}, or in folders of these names"


def _of_files(folder: Path, split: str) -> Dataset:
    """All files whose name, or that of a folder which they are in, begins with the name of the split."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix in KINDS and any(part.startswith(split) for part in file.relative_to(folder).parts)
    ]
    kinds = {KINDS[file.suffix] for file in files}
    if len(kinds) != 1:
        found = "no file" if not kinds else f"files of several kinds ({', '.join(sorted(kinds))})"
        raise ValueError(f"{folder} has {found} for the split {split!r}. Wanted are {_WANTED}.")
    return load_dataset(kinds.pop(), data_files=[str(file) for file in files], split="train")


def questions(rows: Dataset, column: str, answer_of: Callable[[Mapping[str, Any]], str | None], prompt: Callable):
    """Rows as the trainer takes them. A row without an answer is an error that says which."""
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
    """What stands behind the last "####", without commas in numbers.

    Example: "48 / 2 = 24 ... #### 1,072" -> "1072"
    """
    _, mark, answer = str(row.get("answer", "")).rpartition("####")
    return answer.strip().replace(",", "") if mark else None


def math_answer(row: Mapping[str, Any]) -> str | None:
    r"""The column `answer`, or else what is in the last box of the column `solution`.

    Example: r"so $x = \boxed{\frac{1}{2}}$." -> r"\frac{1}{2}"; r"there are $\boxed 7$." -> "7"
    """
    if row.get("answer"):
        return str(row["answer"]).strip()
    solution = str(row.get("solution", ""))
    unbraced = _UNBRACED.findall(solution)
    return last_boxed(solution) or (unbraced[-1] if unbraced else None)
