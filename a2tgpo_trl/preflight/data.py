"""data sets -> whether their answers can be scored and their prompts read."""

from collections.abc import Collection
from itertools import islice
from typing import Any

from datasets import IterableDataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from ..config import A2TGPOConfig
from ..information_gain.answers import check_dataset, check_owned_data, used_answers
from ..rollout.answers import declares_answer
from .chat import Chat, Datasets, Verdict, conversation


ROWS_READ = 10_000  # prompts whose characters are counted
ROWS_TOKENIZED = 64  # the longest of these


def first_row(data: Datasets) -> dict[str, Any]:
    """Return a row to try things on: from the data, or made up if the environment brings the prompts."""
    return next((row for rows in data.values() for row in islice(rows, 1)), {"prompt": conversation([])[:1]})


def check_answers(
    data: Datasets, args: A2TGPOConfig, tokenizer: PreTrainedTokenizerBase, environments: Collection[type] = ()
) -> Verdict:
    """Check that every row has an answer that can be scored, if gains are computed; `environments` may give it."""
    column = args.answer_column
    owners = [kind.__name__ for kind in environments if declares_answer(kind)]
    if owners:
        return "pass", f"environments give them after reset ({', '.join(owners)})"
    if not args.uses_gain:
        lacking = [name for name, rows in data.items() if column not in (rows.column_names or [column])]
        if lacking:
            return "warn", (
                f"The {lacking[0]} data set has no column {column!r}. Training needs none, since no gain is computed, "
                "but the rewards of this package do: name the column with answer_column, or use other rewards."
            )
        return "pass", f"column {column!r}; no gain is computed"
    seen = []
    try:
        check_owned_data(environments, has_data="training" in data)
    except ValueError as error:
        return "fail", str(error)
    for name, rows in data.items():
        try:
            check_dataset(rows, name, column, args.answer_aliases, tokenizer)
            if isinstance(rows, IterableDataset):
                for row in islice(rows, 1):
                    where = f"The first row of the {name} data set, column {column!r},"
                    used_answers(row.get(column), args.answer_aliases, where)
        except ValueError as error:
            return "fail", str(error)
        seen.append(f"{name} {'first row' if isinstance(rows, IterableDataset) else len(rows)}")
    return "pass", f"column {column!r} ({', '.join(seen)})"


def check_prompts(chat: Chat, data: Datasets) -> Verdict:
    """Check that every data set has prompts that the tool loop can take and the template can write."""
    for name, rows in data.items():
        first = next(iter(rows), None)
        if first is None:
            return "fail", f"The {name} data set is empty. Check its split and its filters."
        if "prompt" not in first:
            return "fail", (
                f"The {name} data set has no column 'prompt'; it has {', '.join(first)}. Rename the column of prompts "
                "with dataset.rename_column."
            )
        if chat.tools and not is_conversational({"prompt": first["prompt"]}):
            return "fail", (
                f"The prompts of the {name} data set are plain text, but calls are found only in conversations. Make "
                "each prompt a list of messages: [{'role': 'user', 'content': ...}]."
            )
        try:
            chat.prompt_ids([first["prompt"]])
        except (TemplateError, TypeError, ValueError) as error:
            return "fail", (
                f"The template refuses the first prompt of the {name} data set: {error}. Change the prompts (a system "
                "message may have to move into the user's), or use a model whose template takes them."
            )
    return "pass", ", ".join(data)
