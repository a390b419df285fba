"""the share of groups that teach nothing, batch by batch -> a warning at the end of a run that learnt nothing."""

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

from accelerate.logging import get_logger
from transformers import TrainerCallback


logger = get_logger(__name__)

NEARLY_ALL = 0.95


class NothingToLearn(TrainerCallback):
    """Keeps count over a run, without groups of one rollout, which have nothing to be compared with."""

    def __init__(self, interrupted: Callable[[], bool]) -> None:
        """`interrupted`: whether the run was told to end early; it then gives no warning."""
        self._interrupted = interrupted
        self._since = 0
        self._shares: list[float] = []
        self._rewards: list[float] = []

    def see(self, share: float, reward: float) -> None:
        """Note a batch's share of groups that teach nothing, and its mean reward, NaN if no rollout was scored."""
        self._shares.append(share)
        if not math.isnan(reward):
            self._rewards.append(reward)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._shares.clear()
        self._rewards.clear()
        self._since = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._interrupted() or not self._shares or fmean(self._shares) < NEARLY_ALL:
            return
        what = f"Since step {self._since}, from which it was resumed, this run" if self._since else "This run"
        earned = f"with a mean reward of {fmean(self._rewards):.3g}" if self._rewards else "and no rollout was scored"
        logger.warning(
            f"{what} had next to nothing to learn from: in {fmean(self._shares):.0%} of the groups, all rollouts of a "
            f"prompt earned and gained the same (groups/teach_nothing), {earned}. Read some rollouts "
            "(log_completions: true, or the trainer's on_rollouts). If rewards are always the lowest possible: does "
            "the policy call its tools (turns/mean), and does it reach an answer within max_completion_length "
            "(completions/clipped_ratio), in the form that the reward reads? If they are always the highest possible, "
            "take harder questions. In between, more rollouts per prompt (num_generations) or a higher temperature "
            "make rollouts differ."
        )
