"""What is known about a batch of rollouts while the parent class makes it: from its rows to what is trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..turns import seen_before_turns
from .answers import Answer, Row
from .engines import TailScores


@dataclass(frozen=True)
class Rollouts:
    """Token ids as the rollout made them, ragged: prompts, completions, and 1 for each completion token sampled."""

    prompt_ids: Sequence[Sequence[int]]
    completion_ids: Sequence[Sequence[int]]
    model_mask: Sequence[Sequence[int]]

    @classmethod
    def from_padded(cls, batch: Mapping[str, Tensor]) -> "Rollouts":
        """From tensors as TRL pads them: prompts on the left, completions on the right, `tool_mask` optional."""
        tool_mask = batch.get("tool_mask", torch.ones_like(batch["completion_mask"]))
        parts = (
            (batch["prompt_ids"], batch["prompt_mask"]),
            (batch["completion_ids"], batch["completion_mask"]),
            (tool_mask, batch["completion_mask"]),
        )
        return cls(*([row[keep.bool()].tolist() for row, keep in zip(*part, strict=True)] for part in parts))

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def some(self, chosen: Sequence[int]) -> "Rollouts":
        """The rollouts with these numbers."""
        parts = (self.prompt_ids, self.completion_ids, self.model_mask)
        return Rollouts(*([part[i] for i in chosen] for part in parts))

    def contexts(self, i: int) -> list[int]:
        """Lengths, in tokens from the start of the prompt, of the contexts at which rollout i is valued."""
        prompt = len(self.prompt_ids[i])
        if prompt == 0:
            raise ValueError(f"Rollout {i} has an empty prompt: there is no context in which to value its answer.")
        return [prompt + seen for seen in seen_before_turns(list(self.model_mask[i]))]


@dataclass(frozen=True)
class Scored:
    """Rollouts of this rank as reward functions saw them, and what each function gave."""

    rows: Sequence[Row]
    prompts: Sequence[Any]
    completions: Sequence[Any]
    rewards_BF: Tensor


@dataclass(frozen=True)
class Turns:
    """The turn of each token on this rank, how many turns each rollout on all ranks has, and the largest number."""

    index_BT: Tensor
    number_N: Tensor
    most: int


@dataclass
class Batch:
    """One batch of rollouts. Fields are filled in order; N rollouts on all ranks, B on this rank, F rewards."""

    rows: list[Row]
    is_training: bool
    round: int = 1  # from 2 on, prompts are rolled out again
    answers: list[Answer] = field(default_factory=list)
    tokens: Rollouts | None = None
    # By rollout and length of the context, if the engine scored tails while it sampled.
    tail_scores: TailScores = field(default_factory=dict)
    # The answer to the parent's request for log-probabilities of the old policy, if no forward is needed for it.
    old_logps: list[Tensor] | None = None
    outcomes_N: Tensor | None = None  # weighted sums of rewards, NaN if unscored
    scored: Scored | None = None
    turns: Turns | None = None
    records: list[Any] = field(default_factory=list)  # of its rollouts (`records.py`), if they are wanted

    @property
    def mode(self) -> str:
        """The name under which its metrics are logged."""
        return "train" if self.is_training else "eval"

    @property
    def unscored_N(self) -> Tensor:
        """Rollouts without any reward. The parent gives them an advantage of 0; they must not be learnt from."""
        assert self.outcomes_N is not None
        return self.outcomes_N.isnan()
