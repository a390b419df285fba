"""what TRL hands to trackers -> what they take: two things of it would end a run.

W&B takes a table whose columns are of one type each. Messages of a rollout are of several: one has calls, another the
name of a tool. TRL hands them over as they are. Here they are text.

Trackio has a run from the begin of a training to its end. TRL hands it the seconds of methods at any time, also those
of an evaluation after training.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Number
from typing import Any

import pandas as pd
from transformers import TrainingArguments


@contextmanager
def without(args: TrainingArguments, tracker: str) -> Iterator[None]:
    """Inside, `report_to` does not name it: TRL hands it nothing. Metrics come by a callback, which does not ask."""
    named, args.report_to = args.report_to, [name for name in args.report_to if name != tracker]
    try:
        yield
    finally:
        args.report_to = named


def log_to_wandb(logs: Mapping[str, Any], step: int, unique_prompts: bool) -> None:
    """What TRL logs there, under the same name, in the same columns."""
    import wandb

    if wandb.run is not None:
        frame = as_texts(logs, step, unique_prompts)
        wandb.log({"completions": wandb.Table(dataframe=frame, allow_mixed_types=True)})


def as_texts(logs: Mapping[str, Any], step: int, unique_prompts: bool) -> pd.DataFrame:
    """A line a rollout. What is neither a number nor a text is JSON.

    Example: {"prompt": [[{"role": "user", ...}]], ..., "advantages": [0.5]} -> step 3, '[{"role": "user", ...}]', 0.5
    """
    columns = {"prompt": logs["prompt"], "completion": logs["completion"], **logs["rewards"], **logs["extra"]}
    columns = {"step": [step] * len(logs["prompt"]), **columns, "advantage": logs["advantages"]}
    frame = pd.DataFrame({name: list(map(_plain, values)) for name, values in columns.items()})
    return frame.drop_duplicates("prompt") if unique_prompts else frame


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (Number, str)):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
