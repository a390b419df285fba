"""a trainer's scored rollouts -> turn rewards, evidence of all ranks -> advantages and clip scales of their turns.

Shapes: N rollouts of all ranks, B of this rank, F turn rewards, K turns.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import Tensor

from ..ranks import Ranks
from ..rollout.records import Record
from . import Evidence, Method, Switches, gain_clip_scale, preset_of
from .metrics import state_metrics, turn_reward_metrics
from .scores import Floor
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
from .states import number_states_of_ranks, read_before_turns, to_tensor
from .turn_rewards import TurnRewards


logger = get_logger(__name__)

# Batches in a row without a single success, after which the user is warned.
FRUITLESS_BATCHES = 5


@dataclass(frozen=True)
class CreditSettings:
    """How turns are credited: the method, and the fields of `A2TGPOConfig` of the same names."""

    name: str  # the method's name, for messages
    method: Method
    switches: Switches
    turn_rewards: dict[str, float]
    failure_shaping: float
    shaping_embedding: str
    success_reward: float
    state_likeness: float | None  # None if nothing reads the states in which turns began

    @classmethod
    def of(cls, name: str, method: Method, values: Mapping[str, Any]) -> "CreditSettings":
        """Choose from the values of all settings, by name, those that crediting reads."""
        likeness = values["state_likeness"] if preset_of(method).reads_states(values["gain_groups"]) else None
        as_given = ("turn_rewards", "failure_shaping", "shaping_embedding", "success_reward")
        return cls(
            name, method, Switches.of(values), state_likeness=likeness, **{key: values[key] for key in as_given}
        )


@dataclass(frozen=True)
class ReadTurns:
    """What a credit pass has read from the records of this rank's rollouts, one entry for each."""

    scores: Sequence[dict[str, list[float | None]]] = ()  # of the turns, by turn reward
    attempts: Sequence[str] = ()  # what they tried, if failures are shaped
    states: Sequence[list[int]] = ()  # in which their turns began, if anything reads them
    seconds: float = 0.0  # that comparing states took


class CreditPass:
    """Credits the turns of a trainer's batches. All ranks call it together."""

    def __init__(
        self,
        settings: CreditSettings,
        accelerator: Accelerator,
        own: Sequence[Callable] | Mapping[str, Callable],
        environments: Iterable[type],
        *,
        has_tools: bool,
        has_rollout_func: bool,
        splits_models: bool,
    ):
        """
        Args:
            settings: the method and its settings.
            accelerator: the trainer's.
            own: turn reward functions that were given to the trainer.
            environments: the classes of its environments.
            has_tools: whether its policy calls tools.
            has_rollout_func: whether a function of the user's makes its rollouts.
            splits_models: whether every model that is loaded is split over the ranks.
        """
        self._settings, self._accelerator, self._ranks = settings, accelerator, Ranks(accelerator)
        self._has_tools, self._has_rollout_func, self._splits_models = has_tools, has_rollout_func, splits_models
        self._environment_rewards = have_turn_rewards(environments)
        weights = {**dict.fromkeys(["environment"] * self._environment_rewards, 1.0), **settings.turn_rewards}
        self.rewards = TurnRewards(weights, own)
        self._check()
        self.shaping_embedding = settings.shaping_embedding
        self._embed = self._agreed_embedding() if settings.failure_shaping else None
        self._without_success = 0  # batches in a row

    def _agreed_embedding(self) -> Embedding:
        """Return the embedding, the same on all ranks, and set its name."""
        if self.shaping_embedding == "auto":
            has_encoder = not self._splits_models and has_small_encoder()
            lacking = self._ranks.max(int(not has_encoder))
            self.shaping_embedding = NGRAMS_NAME if lacking else ENCODER
            logger.info(f"Failed rollouts are compared with passing ones by {self.shaping_embedding}.")
        is_encoder = self.shaping_embedding != NGRAMS_NAME and ":" not in self.shaping_embedding
        if is_encoder and self._splits_models:
            raise ValueError(
                f"shaping_embedding={self.shaping_embedding!r} would be sharded across the ranks by ZeRO-3. Name "
                "'ngrams', or a function that calls an encoder of your own."
            )
        return find_embedding(self.shaping_embedding)

    def _check(self) -> None:
        name, weight = self._settings.name, self._settings.switches.turn_reward_weight
        if preset_of(self._settings.method).needs_turn_rewards and not (self.rewards and weight > 0):
            raise ValueError(
                f"credit={name!r} needs turn rewards with a weight, and there are none. Name some (turn_rewards: "
                "{failed_call: -0.1}), pass functions (turn_reward_funcs), set turn_reward_weight above 0, or choose "
                "another method."
            )
        if "environment" in self.rewards.names and not self._environment_rewards:
            raise ValueError(
                "turn_rewards: 'environment' reads an attribute turn_reward, which no environment's class has."
            )
        self._check_turns_are_known()
        if self.rewards and weight == 0:
            logger.warning(
                f"Turn rewards ({', '.join(self.rewards.names)}) are only logged, not learnt from: "
                f"turn_reward_weight is 0, which credit={name!r} sets unless you do."
            )

    def _check_turns_are_known(self) -> None:
        """Check that there are turns, and that enough is known of them for the rewards and states that read them."""
        settings = self._settings
        reads_turns = self.rewards or settings.failure_shaping or self._reads_states
        if reads_turns and not self._has_tools and not self._has_rollout_func:
            own = self.rewards and settings.turn_rewards != preset_of(settings.method).values["turn_rewards"]
            what = f"Turn rewards ({', '.join(self.rewards.names)})" if own else f"credit={settings.name!r}"
            if settings.switches.gain_groups == "state":
                what = "gain_groups='state'"
            raise ValueError(
                f"{what} can only be used with a policy that calls tools, or with a rollout_func: it reads how a "
                "rollout's turns went."
            )
        if self._has_rollout_func and self.rewards.of_calls:
            raise ValueError(
                f"turn_rewards: {', '.join(self.rewards.of_calls)} cannot be computed with a rollout_func, whose "
                "calls the trainer does not see. Have it return what it knows under a key of its own, one list per "
                "rollout, and read that from the record with a function of your own (turn_reward_funcs)."
            )

    @property
    def reads_records(self) -> bool:
        """Whether records of the rollouts are needed."""
        return bool(self.rewards) or self._embed is not None or self._reads_states

    @property
    def _reads_states(self) -> bool:
        return self._settings.state_likeness is not None

    @property
    def strength(self) -> float:
        """The weight of what distinguishes turns, at most 1; advantages far below it are as good as none."""
        switches = self._settings.switches
        weights = [switches.gain_weight, switches.turn_reward_weight if self.rewards else 0.0]
        return min(1.0, max(weights)) or 1.0

    def read(self, records: Sequence[Record], group_size: int | None = None) -> ReadTurns:
        """Score the turns of this rank's rollouts, and add the scores to their records.

        `group_size`: rollouts of a prompt, given for batches that are trained on; their records also get turn states.
        """

        def read() -> ReadTurns:
            scores = [self.rewards.score(record) for record in records]
            return ReadTurns(scores, [attempted(record) for record in records] if self._embed is not None else [])

        found = self._ranks.attempt("A turn reward", read)
        for record, scores in zip(records, found.scores, strict=True):
            record |= {"turn_rewards": scores} if scores else {}
        likeness = self._settings.state_likeness
        if likeness is None or group_size is None:
            return found
        start = time.perf_counter()
        texts = [read_before_turns(record) for record in records]
        states = number_states_of_ranks(self._ranks, texts, group_size, likeness)
        for record, of_rollout in zip(records, states, strict=True):
            record["states"] = of_rollout
        return replace(found, states=states, seconds=time.perf_counter() - start)

    def evidence(
        self,
        read: ReadTurns,
        gains_NK: Tensor,
        outcomes_N: Tensor,
        outcome_advantages_N: Tensor,
        num_turns_N: Tensor,
        group_ids_N: Tensor,
        gain_floor: Floor,
    ) -> tuple[Evidence, dict[str, float]]:
        """Return the evidence for crediting this batch, and its metrics."""
        rewards_NK, metrics = self._turn_rewards(read, gains_NK, num_turns_N)
        if self._embed is not None:
            outcomes_N, of_shaping = self._shape(read.attempts, outcomes_N, group_ids_N)
            metrics |= of_shaping
        gathered = (gains_NK, rewards_NK, outcomes_N, outcome_advantages_N, num_turns_N, group_ids_N)
        evidence = Evidence(*gathered, gain_floor=gain_floor)
        if self._reads_states:
            states_NK = self._gather_states(read.states, evidence)
            evidence = replace(evidence, states_NK=states_NK)
            metrics |= state_metrics(states_NK, group_ids_N)
            metrics["states/seconds"] = self._ranks.max(read.seconds)
        return evidence, metrics

    def _gather_states(self, states: Sequence[list[int]], evidence: Evidence) -> Tensor:
        """The states of all ranks' turns, -1 outside the loss."""
        num_turns_N = evidence.num_turns_N
        self._check_turns(num_turns_N, list(map(len, states)))
        mine = to_tensor(states, evidence.gains_NK.size(1)).to(num_turns_N.device)
        return self._accelerator.gather(mine.contiguous()).masked_fill(~evidence.is_turn_NK, -1)

    def metrics(self, read: ReadTurns, num_turns_N: Tensor, num_turns: int) -> dict[str, float]:
        """Return turn reward metrics of turns that are not credited, as in an evaluation."""
        uncredited_NK = torch.full((len(num_turns_N), num_turns), torch.nan, device=num_turns_N.device)
        return self._turn_rewards(read, uncredited_NK, num_turns_N)[1]

    def advantages(self, evidence: Evidence) -> Tensor:
        """Return the advantages of all turns (N,K), by the run's method."""
        advantages_NK = self._settings.method(evidence, self._settings.switches)
        expected, name = tuple(evidence.gains_NK.shape), self._settings.name
        if tuple(advantages_NK.shape) != expected:
            found = tuple(advantages_NK.shape)
            raise ValueError(
                f"credit={name!r} must return a tensor of shape {expected}; it returned one of shape {found}."
            )
        if not advantages_NK[evidence.is_turn_NK].isfinite().all():
            switches = self._settings.switches
            why = "" if switches.uses_gain else " No gains are computed: set gain_weight above 0 to have them."
            raise ValueError(
                f"credit={name!r} must return a finite number for each turn. Gains and turn rewards are NaN for "
                "turns that have none (the answer turn has no gain, for example): nan_to_num(nan=0.0) makes them "
                f"0.{why}"
            )
        # Entries that are no turns, or that nobody scored, are not learnt from, whatever the method returns for them.
        return torch.where(evidence.is_turn_NK, advantages_NK, 0.0)

    def scores(self, evidence: Evidence) -> Tensor:
        """Return the compared gains of turns (N,K); NaN where there is none."""
        switches = self._settings.switches
        return switches.gain_scores(evidence) if switches.uses_gain else evidence.gains_NK

    def clip_scale(self, evidence: Evidence) -> Tensor:
        """Return the scale of each turn's clip range, which follows its gain (N,K)."""
        return gain_clip_scale(evidence, self._settings.switches)

    def _turn_rewards(self, read: ReadTurns, gains_NK: Tensor, num_turns_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        if not self.rewards:
            return torch.full_like(gains_NK, torch.nan), {}
        self._check_turns(num_turns_N, [len(next(iter(of_rollout.values()))) for of_rollout in read.scores])
        mine = self.rewards.to_tensor(read.scores, gains_NK.size(1)).to(gains_NK.device)
        scores_NFK = self._accelerator.gather(mine.contiguous())
        beyond_NK = torch.arange(gains_NK.size(1), device=gains_NK.device) >= num_turns_N.unsqueeze(1)
        scores_NFK = scores_NFK.masked_fill(beyond_NK.unsqueeze(1), torch.nan)  # not in the loss, so not in statistics
        return self.rewards.weighted(scores_NFK), turn_reward_metrics(scores_NFK, self.rewards.names)

    def _check_turns(self, num_turns_N: Tensor, recorded: Sequence[int]) -> None:
        """Check that turns of the record match runs of sampled tokens; otherwise the wrong turn would be credited."""
        mine = num_turns_N[self._ranks.own_rows(len(recorded))].tolist()
        assert all(turns in (0, number) for turns, number in zip(mine, recorded, strict=True)), (mine, recorded)

    def _shape(
        self, attempts: Sequence[str], outcomes_N: Tensor, group_ids_N: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        assert self._embed is not None
        settings = self._settings
        start = time.perf_counter()
        embeddings_ND = self._accelerator.gather(self._embeddings(attempts, outcomes_N.device))
        shaped_N = shaped_outcomes(
            outcomes_N, embeddings_ND, group_ids_N, weight=settings.failure_shaping, passing=settings.success_reward
        )
        passed = has_passed(outcomes_N, settings.success_reward).float().mean().item()
        self._without_success = 0 if passed else self._without_success + 1
        if self._without_success == FRUITLESS_BATCHES:
            logger.warning(
                f"No rollout reached success_reward ({settings.success_reward:g}) in {FRUITLESS_BATCHES} batches, so "
                "no failure was shaped. success_reward is compared with the weighted sum of the rewards."
            )
        earned_N = (shaped_N - outcomes_N).nan_to_num(nan=0.0)
        return shaped_N, {
            "shaping/seconds": self._ranks.max(time.perf_counter() - start),
            "shaping/passed": passed,
            "shaping/share": (earned_N != 0).float().mean().item(),
            "shaping/mean": earned_N.mean().item(),
        }

    def _embeddings(self, attempts: Sequence[str], device: torch.device) -> Tensor:
        """Embeddings of what this rank's rollouts tried, zeros for nothing. All ranks raise if it fails on one."""
        assert self._embed is not None
        embed, name = self._embed, f"shaping_embedding={self.shaping_embedding!r}"

        def made() -> Tensor:
            found = torch.as_tensor(embed(list(attempts))).to(device, torch.float32)
            if found.dim() != 2 or len(found) != len(attempts):
                raise ValueError(f"it returned shape {tuple(found.shape)} for {len(attempts)} texts")
            return found

        found = self._ranks.attempt(name, made)
        widths = {width for (width,) in self._ranks.gather_lists([found.size(1)])}
        if len(widths) > 1:
            raise ValueError(f"{name} must return the same number of values for each text; got {widths}.")
        tried_B1 = torch.tensor([bool(text) for text in attempts], device=device).unsqueeze(1)
        return (found * tried_B1).contiguous()


def have_turn_rewards(environments: Iterable[type]) -> bool:
    """Whether environments of these classes reward single turns."""
    kinds = list(environments)
    for kind in kinds:
        if isinstance(getattr(kind, "turn_reward", None), property):
            raise ValueError(
                f"{kind.__name__}.turn_reward must be a plain attribute (turn_reward: float | None = None): it is "
                "reset before the calls of each turn."
            )
    return any(hasattr(kind, "turn_reward") for kind in kinds)
