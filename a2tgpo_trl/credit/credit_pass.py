"""a trainer's scored rollouts -> turn rewards, evidence of all ranks -> advantages and clip scale of their turns.

Shapes: N rollouts of all ranks, B of this rank, F turn rewards, K turns.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from torch import Tensor

from ..ranks import Ranks
from ..rollout.environments import environment_kinds
from . import Evidence, gain_clip_scale, preset_of
from .metrics import turn_reward_metrics
from .shaping import (
    ENCODER,
    NGRAMS_NAME,
    Embedding,
    attempted,
    find_embedding,
    has_passed,
    has_small_encoder,
    shaped_outcomes,
)
from .turn_rewards import TurnRewards


if TYPE_CHECKING:
    from ..trainer import A2TGPOTrainer

logger = get_logger(__name__)

# Batches without a single success, after which the user is told.
FRUITLESS_BATCHES = 5


class TurnCredit:
    """What a trainer needs to credit turns. Methods are called by all ranks together."""

    def __init__(self, trainer: "A2TGPOTrainer", own: Sequence[Callable] | Mapping[str, Callable]):
        """`own`: turn reward functions that were handed to the trainer."""
        args, self._trainer, self._ranks = trainer.args, trainer, Ranks(trainer.accelerator)
        self._method, self._switches = args.credit_method, args.credit_switches
        assert isinstance(args.turn_rewards, dict)  # `A2TGPOConfig` has read it
        weights = {**dict.fromkeys(["environment"] * self._environment_rewards, 1.0), **args.turn_rewards}
        self.rewards = TurnRewards(weights, own)
        self._check(args)
        self._embed = self._agreed_embedding() if args.failure_shaping else None
        self._scores: list[dict[str, list[float | None]]] = []
        self._texts: list[str] = []
        self._without_success = 0  # batches in a row

    @property
    def _environment_rewards(self) -> bool:
        kinds = environment_kinds(self._trainer)
        for kind in kinds:
            if isinstance(getattr(kind, "turn_reward", None), property):
                raise ValueError(
                    f"{kind.__name__}.turn_reward must be a plain attribute (turn_reward: float | None = None): it is "
                    "set anew before the calls of each turn."
                )
        return any(hasattr(kind, "turn_reward") for kind in kinds)

    def _agreed_embedding(self) -> Embedding:
        """The same one on all ranks, and by its name among the settings, so that a resumed run has the same."""
        args = self._trainer.args
        if args.shaping_embedding == "auto":
            has_encoder = not self._trainer._dist.is_zero3 and has_small_encoder()
            lacking = self._ranks.max(int(not has_encoder))
            args.shaping_embedding = NGRAMS_NAME if lacking else ENCODER
            logger.info(f"What failed is compared with what passed by {args.shaping_embedding}.")
        is_encoder = args.shaping_embedding != NGRAMS_NAME and ":" not in args.shaping_embedding
        if is_encoder and self._trainer._dist.is_zero3:
            raise ValueError(
                f"shaping_embedding={args.shaping_embedding!r} would be split over the ranks by ZeRO-3. Name "
                "'ngrams', or a function that asks an encoder of yours."
            )
        return find_embedding(args.shaping_embedding)

    def _check(self, args: Any) -> None:
        counts = bool(self.rewards) and args.turn_reward_weight > 0
        if preset_of(self._method).needs_turn_rewards and not counts:
            raise ValueError(
                f"credit={args.credit!r} credits turn rewards, and there are none. Name some (turn_rewards: "
                "{failed_call: -0.1}), hand over functions (turn_reward_funcs), give them a turn_reward_weight, or "
                "choose another method."
            )
        if "environment" in self.rewards.names and not self._environment_rewards:
            raise ValueError(
                "turn_rewards: no environment's class has an attribute turn_reward, which 'environment' reads."
            )
        self._check_turns_are_known(args)
        if self.rewards and args.turn_reward_weight == 0:
            logger.warning(
                f"Turn rewards ({', '.join(self.rewards.names)}) are logged and not learnt from: turn_reward_weight "
                f"is 0, as credit={args.credit!r} sets it if you do not."
            )

    def _check_turns_are_known(self, args: Any) -> None:
        """There are turns to read, and what is known of them is enough for what reads them."""
        of_tools = self._trainer._tool_loop is not None and bool(self._trainer.tools)
        of_function = self._trainer.rollout_func is not None
        if (self.rewards or args.failure_shaping) and not of_tools and not of_function:
            own = self.rewards and args.turn_rewards != preset_of(self._method).values["turn_rewards"]
            what = f"Turn rewards ({', '.join(self.rewards.names)})" if own else f"credit={args.credit!r}"
            raise ValueError(
                f"{what} can only be had of a policy with tools, or of a rollout_func: what is read is how its turns "
                "went."
            )
        if of_function and self.rewards.of_calls:
            raise ValueError(
                f"turn_rewards: {', '.join(self.rewards.of_calls)} cannot be told of a rollout_func, which makes its "
                "calls unseen. Have it return what it knows under a key of its own, one list a rollout, and read that "
                "from the record by a function of yours (turn_reward_funcs)."
            )

    @property
    def reads_records(self) -> bool:
        """Whether records of the rollouts are needed."""
        return bool(self.rewards) or self._embed is not None

    @property
    def strength(self) -> float:
        """Weight of what turns are told apart by, at most 1: what is far below it is as good as no advantage."""
        weights = [self._switches.gain_weight, self._switches.turn_reward_weight if self.rewards else 0.0]
        return min(1.0, max(weights)) or 1.0

    def read(self, records: Sequence[dict[str, Any]]) -> None:
        """Score the turns of this rank's rollouts, whose records get the scores as well."""

        def read() -> None:
            self._scores = [self.rewards.score(record) for record in records]
            self._texts = [attempted(record) for record in records] if self._embed is not None else []

        self._ranks.attempt("A turn reward", read)
        for record, scores in zip(records, self._scores, strict=True):
            record |= {"turn_rewards": scores} if scores else {}

    def evidence(
        self,
        gains_NK: Tensor,
        outcomes_N: Tensor,
        outcome_advantages_N: Tensor,
        num_turns_N: Tensor,
        group_ids_N: Tensor,
        gain_floor: float,
    ) -> tuple[Evidence, dict[str, float]]:
        """What there is to credit this batch by, and metrics of it."""
        rewards_NK, metrics = self._turn_rewards(gains_NK, num_turns_N)
        if self._embed is not None:
            outcomes_N, of_shaping = self._shape(outcomes_N, group_ids_N)
            metrics |= of_shaping
        gathered = (gains_NK, rewards_NK, outcomes_N, outcome_advantages_N, num_turns_N, group_ids_N)
        return Evidence(*gathered, gain_floor=gain_floor), metrics

    def metrics(self, num_turns_N: Tensor, num_turns: int) -> dict[str, float]:
        """What turns earned that are not credited, as in an evaluation."""
        uncredited_NK = torch.full((len(num_turns_N), num_turns), torch.nan, device=num_turns_N.device)
        return self._turn_rewards(uncredited_NK, num_turns_N)[1]

    def advantages(self, evidence: Evidence) -> Tensor:
        """Of all turns (N,K), by the run's method."""
        advantages_NK = self._method(evidence, self._switches)
        expected, name = tuple(evidence.gains_NK.shape), self._trainer.args.credit
        if tuple(advantages_NK.shape) != expected:
            found = tuple(advantages_NK.shape)
            raise ValueError(f"credit={name!r} must return a tensor of shape {expected}; it returned one of {found}.")
        if not advantages_NK[evidence.is_turn_NK].isfinite().all():
            why = (
                "" if self._trainer.args.uses_gain else " No gains are computed: set gain_weight above 0 to have them."
            )
            raise ValueError(
                f"credit={name!r} must return a finite number for each turn. Gains and turn rewards are NaN where a "
                f"turn has none, as the answer turn has no gain: nan_to_num(nan=0.0) makes them 0.{why}"
            )
        # What is no turn, or was scored by nobody, is not learnt from, whatever the method makes of it.
        return torch.where(evidence.is_turn_NK, advantages_NK, 0.0)

    def clip_scale(self, evidence: Evidence) -> Tensor:
        """How far the clip range of each turn follows its gain (N,K)."""
        return gain_clip_scale(evidence, self._switches)

    def _turn_rewards(self, gains_NK: Tensor, num_turns_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        if not self.rewards:
            return torch.full_like(gains_NK, torch.nan), {}
        self._check_turns(num_turns_N)
        mine = self.rewards.to_tensor(self._scores, gains_NK.size(1)).to(gains_NK.device)
        scores_NFK = self._trainer.accelerator.gather(mine.contiguous())
        beyond_NK = torch.arange(gains_NK.size(1), device=gains_NK.device) >= num_turns_N.unsqueeze(1)
        scores_NFK = scores_NFK.masked_fill(beyond_NK.unsqueeze(1), torch.nan)  # out of the loss, out of statistics
        return self.rewards.weighted(scores_NFK), turn_reward_metrics(scores_NFK, self.rewards.names)

    def _check_turns(self, num_turns_N: Tensor) -> None:
        """A turn of the record is a run of sampled tokens: else the wrong turn would be rewarded."""
        mine = num_turns_N[self._trainer._local_rows(len(self._scores))].tolist()
        recorded = [len(next(iter(of_rollout.values()))) for of_rollout in self._scores]
        assert all(turns in (0, number) for turns, number in zip(mine, recorded, strict=True)), (mine, recorded)

    def _shape(self, outcomes_N: Tensor, group_ids_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        assert self._embed is not None
        args = self._trainer.args
        start = time.perf_counter()
        embeddings_ND = self._trainer.accelerator.gather(self._embeddings(outcomes_N.device))
        shaped_N = shaped_outcomes(
            outcomes_N, embeddings_ND, group_ids_N, weight=args.failure_shaping, passing=args.success_reward
        )
        passed = has_passed(outcomes_N, args.success_reward).float().mean().item()
        self._without_success = 0 if passed else self._without_success + 1
        if self._without_success == FRUITLESS_BATCHES:
            logger.warning(
                f"No rollout reached success_reward ({args.success_reward:g}) in {FRUITLESS_BATCHES} batches, so no "
                "failure was shaped. It is compared with the weighted sum of the rewards."
            )
        earned_N = (shaped_N - outcomes_N).nan_to_num(nan=0.0)
        return shaped_N, {
            "shaping/seconds": self._ranks.max(time.perf_counter() - start),
            "shaping/passed": passed,
            "shaping/share": (earned_N != 0).float().mean().item(),
            "shaping/mean": earned_N.mean().item(),
        }

    def _embeddings(self, device: torch.device) -> Tensor:
        """Of what this rank's rollouts tried: zeros for nothing. All ranks raise if it fails on any."""
        assert self._embed is not None
        embed, name = self._embed, f"shaping_embedding={self._trainer.args.shaping_embedding!r}"

        def made() -> Tensor:
            found = torch.as_tensor(embed(self._texts)).to(device, torch.float32)
            if found.dim() != 2 or len(found) != len(self._texts):
                raise ValueError(f"it returned shape {tuple(found.shape)} for {len(self._texts)} texts")
            return found

        found = self._ranks.attempt(name, made)
        widths = {width for (width,) in self._ranks.gather_lists([found.size(1)])}
        if len(widths) > 1:
            raise ValueError(f"{name} must return as many numbers for each text; got {widths}.")
        tried_B1 = torch.tensor([bool(text) for text in self._texts], device=device).unsqueeze(1)
        return (found * tried_B1).contiguous()
