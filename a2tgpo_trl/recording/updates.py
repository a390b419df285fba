"""a batch that is trained on, what each update computes for it -> its records, with the ratios of turns and tokens.

The tensors of an update stay on the device of the loss until the writing thread writes the batch.

Shapes: B rollouts of a micro-batch, T completion tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from ..rollout.records import Record, json_number
from ..turns import count_turns, turn_means


DECIMALS = 6  # of numbers of tokens


@dataclass(frozen=True)
class Update:
    """What the loss computed for a micro-batch in one update.

    Args:
        turn_BT: the turn of each token, -1 for tool tokens and padding.
        logps_BT, old_logps_BT: log-probabilities under the policy that is updated, and under the one that sampled.
        ratio_BT: the importance ratio that the loss used.
        clipped_BT: whether the clip range stopped a token; None if there is no such range.
    """

    turn_BT: Tensor
    logps_BT: Tensor
    old_logps_BT: Tensor
    ratio_BT: Tensor
    clipped_BT: Tensor | None

    def of_turns(self, row: int, number: int) -> dict[str, list[float | None]]:
        """Means over the tokens of each of a rollout's first `number` turns."""
        return {name: list(map(json_number, rows[row][:number])) for name, rows in self._turns.items()}

    def of_tokens(self, row: int, number: int) -> dict[str, list[float | None]]:
        """Values of a rollout's first `number` tokens; None for a token that is in no turn.

        Example: turns 0 0 -1, log-probabilities -1.0 -1.2 0.0, at sampling -1.0 -1.3 0.0
                 -> {"logps": [-1.0, -1.3, None], "ratios": [1.0, 1.105171, None], ...}
        """
        inside = self._inside[row][:number]
        outside = [None] * (number - len(inside))  # columns that were cut off
        return {name: [*_known(rows[row][:number], inside), *outside] for name, rows in self._tokens.items()}

    # The properties below cover all rows, so that each is fetched from an accelerator only once.

    @cached_property
    def _turn(self) -> Tensor:
        return self.turn_BT.cpu()

    @cached_property
    def _inside(self) -> list[list[bool]]:
        return (self._turn >= 0).tolist()

    @cached_property
    def _turns(self) -> dict[str, list[list[float]]]:
        values = {"ratios": self.ratio_BT, "clip_fractions": self.clipped_BT}
        known = {name: of_tokens.cpu().float() for name, of_tokens in values.items() if of_tokens is not None}
        number = count_turns(self._turn)
        return {name: turn_means(of_tokens, self._turn, number).tolist() for name, of_tokens in known.items()}

    @cached_property
    def _tokens(self) -> dict[str, list[list[float]]]:
        old_BT = self.old_logps_BT.cpu().double()
        values = {"logps": old_BT, "ratios": (self.logps_BT.cpu().double() - old_BT).exp()}
        found = {name: torch.round(of_tokens, decimals=DECIMALS).tolist() for name, of_tokens in values.items()}
        return found if self.clipped_BT is None else found | {"clipped": self.clipped_BT.cpu().int().tolist()}


def _known(values: Sequence[float], inside: Sequence[bool]) -> Iterator[float | None]:
    """The values of tokens that are in a turn; None for other tokens and for NaN and infinity."""
    for value, is_inside in zip(values, inside, strict=True):
        yield value if is_inside and math.isfinite(value) else None


class TrainedBatch:
    """The records of a batch that is trained on, and the last update of each."""

    def __init__(self, records: Sequence[Record], updates: int):
        """
        Args:
            records: those of the rollouts with numbers 0, 1, ...
            updates: how many updates will use each.
        """
        self._records = records
        self._last: dict[int, tuple[Update, int]] = {}  # the last update of each, and its row in it
        self._made = [0] * len(records)
        self._left = updates * len(records)

    def see(self, numbers: Sequence[int], update: Update) -> bool:
        """Note an update on a micro-batch of these rollouts; return whether it was the batch's last."""
        for row, number in enumerate(numbers):
            self._last[number] = update, row
            self._made[number] += 1
        self._left -= len(numbers)
        return self._left <= 0

    def records(self) -> list[Record]:
        """The records, with the values of their last update."""
        return [self._record(number) for number in range(len(self._records))]

    def _record(self, number: int) -> Record:
        record: dict[str, Any] = {**self._records[number], "updates": self._made[number]}
        if number in self._last:
            update, row = self._last[number]
            record |= update.of_turns(row, len(record["advantages"]))
            if (tokens := record.get("tokens")) is not None:
                record["tokens"] = {**tokens, **update.of_tokens(row, len(tokens["ids"]))}
        return cast(Record, record)
