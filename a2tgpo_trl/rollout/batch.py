"""What is known of a batch of rollouts while its parent class makes it: from its rows to what is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .answers import Answer


Row = dict[str, Any]


@dataclass(frozen=True)
class Tokens:
    """Of each rollout: its prompt, what followed it, and 1 for each token of that which the policy sampled."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    model_mask: list[list[int]]


@dataclass(frozen=True)
class Scored:
    """Rollouts of this rank as reward functions saw them, and what each function gave."""

    rows: Sequence[Row]
    prompts: Sequence[Any]
    completions: Sequence[Any]
    rewards_BF: Tensor


@dataclass
class Batch:
    """One batch of rollouts. Fields are filled in their order; N rollouts of all ranks, B of this rank, F rewards."""

    rows: list[Row]
    is_training: bool
    round: int = 1  # of several in which prompts are rolled out again
    answers: list[Answer] = field(default_factory=list)
    tokens: Tokens | None = None
    # What the parent's request for log-probabilities of the policy as it was is answered with, if it need not ask.
    old_logps: list[Tensor] | None = None
    outcomes_N: Tensor | None = None  # weighted sums of rewards, NaN where nobody scored
    scored: Scored | None = None

    @property
    def mode(self) -> str:
        """The name under which its metrics are logged."""
        return "train" if self.is_training else "eval"

    @property
    def unscored_N(self) -> Tensor:
        """Rollouts without any reward. The parent gives them an advantage of 0; they are not to be learnt from."""
        assert self.outcomes_N is not None
        return self.outcomes_N.isnan()
