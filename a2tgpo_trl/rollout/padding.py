"""a padded batch <-> its rows without padding; a micro-batch -> the same without columns of nothing but padding.

TRL pads a whole batch of rollouts to its longest one, and cuts micro-batches out of that. One rollout that runs to its
limit would then make the loss compute on padding for all the others.

Shapes: B rollouts, P prompt tokens, T completion tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence


# The keys of a batch, and the values that pad them. Any other key would be new in TRL, with unknown meaning.
PROMPT_KEYS = ("prompt_ids", "prompt_mask")
COMPLETION_FILL: dict[str, float] = {
    "completion_mask": 0,
    "tool_mask": 1,  # as TRL fills it
    "turn_index": -1,
    "advantages": 0.0,
    "clip_scale": 1.0,
    "old_per_token_logps": 0.0,
    "sampling_per_token_logps": 0.0,
    "importance_sampling_ratio": 1.0,
    # TRL takes exp(reference - policy) before it masks: with 0 that may be inf, and inf times a mask of 0 is NaN.
    "ref_per_token_logps": -100.0,
}
BATCH_KEYS = ("num_items_in_batch", "num_turns")


def to_rows(batch: dict[str, Tensor], pad_id: int) -> list[dict[str, Tensor]]:
    """Each rollout of a batch without its padding. Values of the whole batch (`BATCH_KEYS`) are left out."""
    unknown = batch.keys() - {"completion_ids", *PROMPT_KEYS, *COMPLETION_FILL, *BATCH_KEYS}
    if unknown:
        raise ValueError(
            f"A batch cannot be split into rows with these unknown entries: {', '.join(sorted(unknown))}."
        )
    completion_BT, prompt_mask = batch["completion_ids"], batch["prompt_mask"]
    # The mask alone is not enough: it is all 0 for a truncated rollout that is masked out.
    real_BT = batch["completion_mask"].bool() | (completion_BT != pad_id)
    place_T = torch.arange(1, completion_BT.size(1) + 1, device=completion_BT.device)
    lengths = (real_BT * place_T).amax(dim=1).tolist()
    starts = (prompt_mask.size(1) - prompt_mask.sum(dim=1)).tolist()
    rows: list[dict[str, Tensor]] = [{} for _ in lengths]
    for key, values in batch.items():
        if key in BATCH_KEYS:
            continue
        for row, of_row, start, length in zip(rows, values, starts, lengths, strict=True):
            row[key] = of_row[int(start) :] if key in PROMPT_KEYS else of_row[: int(length)]
    return rows


def to_batch(rows: Sequence[dict[str, Tensor]], pad_id: int, multiple: int | None = None) -> dict[str, Tensor]:
    """Rows of different lengths as one batch: prompts padded on the left, completions on the right.

    Example: completions [7] and [8, 9] -> [[7, pad_id], [8, 9]]; with multiple 4 -> [[7, p, p, p], [8, 9, p, p]]
    """
    assert all(row.keys() == rows[0].keys() for row in rows)
    batch = {}
    longest = max(len(row["completion_ids"]) for row in rows)
    for key in rows[0]:
        side = "left" if key in PROMPT_KEYS else "right"
        fill = pad_id if key in ("prompt_ids", "completion_ids") else COMPLETION_FILL.get(key, 0)
        values = pad_sequence([row[key] for row in rows], True, fill, side)
        if key == "importance_sampling_ratio" and values.size(1) < longest:
            batch[key] = values  # one number per rollout, in place of one per token
            continue
        missing = 0 if multiple is None else -values.size(1) % multiple
        batch[key] = pad(values, (missing, 0) if side == "left" else (0, missing), value=fill)
    return batch


# ---- narrower micro-batches


class Padding(NamedTuple):
    """Columns without a token, at the left of the prompts and at the right of the completions."""

    left: int
    right: int

    def cut(self, rows_BL: Tensor) -> Tensor:
        """Rows of prompt and completion without this padding."""
        return rows_BL[:, self.left : rows_BL.size(1) - self.right]


def padding_of(
    prompt_mask_BP: Tensor, completion_mask_BT: Tensor, *, left: bool = True, multiple: int | None = None
) -> Padding:
    """The padding that all rows share; widths stay multiples of `multiple`, and each part keeps a column.

    Args:
        prompt_mask_BP, completion_mask_BT: 1 for tokens; prompts are padded on the left, completions on the right.
        left: whether prompts are cut. It changes what a model computes whose positions count from the first column.

    Example: prompts [[0, 0, 1], [0, 1, 1]], completions [[1, 0, 0, 0], [1, 1, 0, 0]] -> Padding(1, 2)
    """
    spare = (
        _empty_columns(prompt_mask_BP.flip(1)) if left else 0,
        _empty_columns(completion_mask_BT),
    )
    return Padding(*(columns - columns % (multiple or 1) for columns in spare))


def _empty_columns(mask: Tensor) -> int:
    """Columns at the right in which no row has a token; for an empty mask, all columns but the first."""
    used = mask.any(dim=0).nonzero()
    return mask.size(1) - (int(used.max()) + 1 if len(used) else 1)


def trimmed(batch: Mapping[str, Any], padding: Padding) -> dict[str, Any]:
    """A batch of TRL's without this padding, in everything that has a value for each token."""
    width = batch["completion_ids"].size(1)
    cut: dict[str, Any] = dict(batch)
    for key, values in batch.items():
        if key in PROMPT_KEYS:
            cut[key] = values[:, padding.left :].contiguous()
        # There may be one importance weight for all tokens of a rollout.
        elif key in ("completion_ids", *COMPLETION_FILL) and values.size(1) == width:
            cut[key] = values[:, : width - padding.right].contiguous()
    return cut
