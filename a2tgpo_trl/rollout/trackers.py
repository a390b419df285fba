"""what TRL passes to trackers -> what they accept: two things in it would end a run.

W&B accepts a table whose columns have one type each. Messages of a rollout have several: one has calls, another the
name of a tool. TRL passes them on unchanged. Here they become text.

Trackio has a run from the beginning of training to its end. TRL passes it the seconds of methods at any time, also
during an evaluation after training.
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
    """Inside, `report_to` lacks this tracker, so TRL sends it nothing. The metrics callback does not look there."""
    named, args.report_to = args.report_to, [name for name in args.report_to if name != tracker]
    try:
        yield
    finally:
        args.report_to = named


def log_to_wandb(logs: Mapping[str, Any], step: int, unique_prompts: bool) -> None:
    """Log what TRL would log to W&B, under the same name, in the same columns."""
    import wandb

    if wandb.run is not None:
        frame = as_texts(logs, step, unique_prompts)
        wandb.log({"completions": wandb.Table(dataframe=frame, allow_mixed_types=True)})


def as_texts(logs: Mapping[str, Any], step: int, unique_prompts: bool) -> pd.DataFrame:
    """One line per rollout. Values that are neither numbers nor texts become JSON.

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
