"""data sets, rows -> the accepted answers that are scored, or an error that names the row and says what to do."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase


WITHOUT_ANSWERS = (
    "train with a method that needs no answers: credit='gtpo' reads turn rewards and the outcome, credit='grpo' only "
    "the outcome (any method works without gains if gain_weight=0, clip_adaptation=0)"
)


def used_answers(answer: Any, aliases: str, where: str) -> list[str]:
    """Return the accepted answers of a row that are scored; raise a ValueError that names a row with unfit ones."""
    accepted = [answer] if isinstance(answer, str) else answer
    if not isinstance(accepted, Sequence) or not all(isinstance(text, str) for text in accepted):
        raise ValueError(
            f"{where} holds {answer!r}: an answer must be a string or a list of strings. Convert it (a column with "
            f"dataset.map), or {WITHOUT_ANSWERS}."
        )
    if not accepted:
        raise ValueError(f"{where} holds an empty list: the information gain needs an answer. Drop the row.")
    used = list(accepted[:1] if aliases == "first" else accepted)
    if not all(text.strip() for text in used):
        raise ValueError(f"{where} holds {answer!r}: an answer must not be blank. Drop the row or fill it in.")
    return used


def check_dataset(
    dataset: Dataset | IterableDataset, name: str, column: str, aliases: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Check that every row of a map-style data set has an answer to score. Streams are checked as rows arrive."""
    if dataset.column_names is not None and column not in dataset.column_names:
        raise ValueError(
            f"The {name} data set has no column {column!r}; it has {', '.join(dataset.column_names)}. The information "
            "gain is measured against the ground-truth answer: name its column with answer_column, declare answer in "
            f"the environment's class (answer: str | None = None) and have reset set it, or {WITHOUT_ANSWERS}."
        )
    if isinstance(dataset, IterableDataset):
        return
    rows = [
        used_answers(answer, aliases, f"Row {i} of the {name} data set, column {column!r},")
        for i, answer in enumerate(dataset[column])
    ]
    texts = [text for row in rows for text in row]
    tokenized = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    for text, ids in zip(texts, tokenized, strict=True):
        if not ids:
            raise ValueError(
                f"The answer {text!r} in column {column!r} of the {name} data set tokenises to nothing, so there is "
                "no token to score. Drop the row, or use a tokenizer that knows these characters."
            )


def check_owned_data(environments: Iterable[type], has_data: bool) -> None:
    """Check that there is a data set if some environments declare no answer."""
    names = ", ".join(kind.__name__ for kind in environments)
    if names and not has_data:
        raise ValueError(
            f"There is no answer to score: no data set was given, and {names} declares none. Declare it in the class "
            f"(answer: str | None = None) and have reset set it, or {WITHOUT_ANSWERS}."
        )


def named_datasets(train: Any, evaluation: Any) -> Iterable[tuple[str, Dataset | IterableDataset]]:
    """Yield a trainer's data sets, with their names in messages; an empty training set is left out."""
    if train is not None and not is_empty(train):
        yield "training", train
    if isinstance(evaluation, Mapping):
        yield from ((f"evaluation ({name})", dataset) for name, dataset in evaluation.items())
    elif evaluation is not None:
        yield "evaluation", evaluation


def is_empty(dataset: Dataset | IterableDataset) -> bool:
    """Whether a data set has no rows; False for a stream, whose rows are unknown before it is read."""
    return isinstance(dataset, Dataset) and len(dataset) == 0
