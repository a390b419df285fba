"""micro-batch -> the same rows without the columns in which none of them has a token.

TRL pads a whole batch of rollouts to its longest one, and cuts micro-batches out of that. One rollout that babbles to
its limit would then have the loss compute on padding for all the others.

Shapes: B rollouts, P prompt tokens, T completion tokens.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .resampling import COMPLETION_FILL, PROMPT_KEYS


class Padding(NamedTuple):
    """Columns without a token, at the left of the prompts and at the right of the completions."""

    left: int
    right: int

    def cut(self, rows_BL: Tensor) -> Tensor:
        """Rows of prompt and completion without it."""
        return rows_BL[:, self.left : rows_BL.size(1) - self.right]


def padding_of(
    prompt_mask_BP: Tensor, completion_mask_BT: Tensor, *, left: bool = True, multiple: int | None = None
) -> Padding:
    """What is padding in all rows, so that widths stay multiples of `multiple`; a column is left of each.

    Args:
        prompt_mask_BP, completion_mask_BT: 1 for tokens; prompts are padded on the left, completions on the right.
        left: whether prompts lose theirs. A model whose positions count from the first column computes otherwise then.

    Example: prompts [[0, 0, 1], [0, 1, 1]], completions [[1, 0, 0, 0], [1, 1, 0, 0]] -> Padding(1, 2)
    """
    spare = (
        _empty_columns(prompt_mask_BP.flip(1)) if left else 0,
        _empty_columns(completion_mask_BT),
    )
    return Padding(*(columns - columns % (multiple or 1) for columns in spare))


def _empty_columns(mask: Tensor) -> int:
    """At the right, where no row has a token; of an empty mask, all columns but the first."""
    used = mask.any(dim=0).nonzero()
    return mask.size(1) - (int(used.max()) + 1 if len(used) else 1)


def trimmed(batch: Mapping[str, Any], padding: Padding) -> dict[str, Any]:
    """A batch of TRL's without this padding, whatever it holds for each token."""
    width = batch["completion_ids"].size(1)
    cut: dict[str, Any] = dict(batch)
    for key, values in batch.items():
        if key in PROMPT_KEYS:
            cut[key] = values[:, padding.left :].contiguous()
        # There may be one importance weight for all tokens of a rollout.
        elif key in ("completion_ids", *COMPLETION_FILL) and values.size(1) == width:
            cut[key] = values[:, : width - padding.right].contiguous()
    return cut
