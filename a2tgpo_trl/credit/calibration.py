"""recorded rollouts -> for each kind of turn, what it goes with, the weight to reward it by, and whether that works.

    weight = scale x rho        rho: correlation of "the rollout has such a turn" with "it passed"; 0 below a threshold

rho of two yes-or-no variables is the point-biserial correlation. A weight is of use if, once turns are credited with
it, those of that kind are credited in the direction that it points to: what comes after a turn may outweigh its own
reward. A kind that fails this check is left out, and the others are looked at again (iterative reward calibration,
arXiv 2604.02869). To iterate, train with the weights, record rollouts of the new policy, and calibrate again.

Shapes: N rollouts, K turns.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import Evidence, Method, Switches
from .turn_rewards import TurnReward, TurnRewards


OUTCOME_FLOOR = 1e-4  # TRL's, beside the standard deviation
NEGLIGIBLE = 1e-6  # advantage: where a kind is in all rollouts of a prompt, they do not differ by it


@dataclass(frozen=True)
class Kind:
    """A kind of turn in a set of rollouts."""

    name: str
    rollouts: int  # that have such a turn
    correlation: float | None  # None: all have one, or none has, or all rollouts ended alike
    weight: float  # 0: below the threshold, or left out
    mean_advantage: float | None = None  # of turns of the kind; None: nothing to compare them with
    left_out: bool = False  # since its turns would be credited against its weight

    @property
    def agrees(self) -> bool | None:
        """Whether its turns are credited in the direction of its weight."""
        if self.weight == 0 or self.mean_advantage is None or abs(self.mean_advantage) < NEGLIGIBLE:
            return None
        return (self.mean_advantage > 0) == (self.weight > 0)


def calibrate(
    records: Sequence[dict[str, Any]],
    kinds: Mapping[str, TurnReward],
    method: Method,
    switches: Switches,
    *,
    passed: Callable[[dict[str, Any]], bool],
    scale: float,
    threshold: float,
) -> list[Kind]:
    """What each kind of turn is worth, in the order of `kinds`.

    Args:
        records: rollouts; of one group are those of the same `file` and row, or of the same prompt where they have no
            row. Only those with turns count.
        kinds: functions that are not 0 on turns of a kind.
        method, switches: what the turns would be credited by.
        passed: whether a rollout has.
        scale: weight of a kind with correlation 1.
        threshold: correlations below this, either way, are worth nothing.

    Example: of four rollouts the two with a failed call failed, the others passed: rho -1, weight -scale.
    """
    used = [record for record in records if record.get("turns") and not record.get("excluded")]
    outcomes = [float(passed(record)) for record in used]
    scores = [TurnRewards(dict.fromkeys(kinds, 1.0), kinds).score(record) for record in used]
    found = []
    for name in kinds:
        has = [float(any(of_rollout[name])) for of_rollout in scores]
        rho = correlation(has, outcomes)
        counts = rho is not None and abs(rho) >= threshold
        found.append(Kind(name, int(sum(has)), rho, scale * rho if counts and rho is not None else 0.0))
    return _checked(found, used, scores, outcomes, method, switches)


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's; None where one of them does not vary.

    Example: [1, 1, 0, 0] with [0, 0, 1, 1] -> -1; [1, 0, 0, 0] with [1, 1, 0, 0] -> 0.5774
    """
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return statistics.correlation(first, second)


def _checked(
    kinds: Sequence[Kind],
    records: Sequence[dict[str, Any]],
    scores: Sequence[Mapping[str, Sequence[float | None]]],
    outcomes: Sequence[float],
    method: Method,
    switches: Switches,
) -> list[Kind]:
    """Leave out the kind whose turns are credited most against its weight, until there is none."""
    checked = list(kinds)
    while True:
        means = mean_advantages(
            {kind.name: kind.weight for kind in checked}, records, scores, outcomes, method, switches
        )
        # One that was left out keeps the figure that it was left out for.
        checked = [kind if kind.left_out else replace(kind, mean_advantage=means[kind.name]) for kind in checked]
        against = [kind for kind in checked if kind.agrees is False]
        if not against:
            return checked
        worst = max(against, key=lambda kind: abs(kind.mean_advantage or 0.0))
        checked = [replace(kind, weight=0.0, left_out=True) if kind is worst else kind for kind in checked]


def mean_advantages(
    weights: Mapping[str, float],
    records: Sequence[dict[str, Any]],
    scores: Sequence[Mapping[str, Sequence[float | None]]],
    outcomes: Sequence[float],
    method: Method,
    switches: Switches,
) -> dict[str, float | None]:
    """Of the turns of each kind, among rollouts of prompts that were rolled out more than once."""
    evidence, of_kind_NFK = _evidence(weights, records, scores, outcomes)
    _, group_N, sizes = evidence.group_ids_N.unique(return_inverse=True, return_counts=True)
    compared_NK = evidence.is_turn_NK & (sizes[group_N] > 1).unsqueeze(1)
    advantages_NK = method(evidence, switches)
    means = {}
    for f, name in enumerate(weights):
        chosen_NK = compared_NK & (of_kind_NFK[:, f].nan_to_num(nan=0.0) != 0)
        means[name] = advantages_NK[chosen_NK].mean().item() if chosen_NK.any() else None
    return means


def _evidence(
    weights: Mapping[str, float],
    records: Sequence[dict[str, Any]],
    scores: Sequence[Mapping[str, Sequence[float | None]]],
    outcomes: Sequence[float],
) -> tuple[Evidence, Tensor]:
    """What a trainer would know of these rollouts, without gains, and the unweighted scores (N,F,K)."""
    num_turns_N = torch.tensor([len(record["turns"]) for record in records])
    rewards = TurnRewards(weights, dict.fromkeys(weights, _unused))
    scores_NFK = rewards.to_tensor(scores, int(num_turns_N.max()))
    rewards_NK = rewards.weighted(scores_NFK)
    numbers: dict[str, int] = {}
    # Of the same row, prompts differ where environments begin differently.
    asked = [[record.get("file"), record["row"] if "row" in record else record["prompt"]] for record in records]
    prompts = [json.dumps(words, sort_keys=True, default=str) for words in asked]
    group_ids_N = torch.tensor([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])
    outcomes_N = torch.tensor(outcomes)
    advantages_N = torch.zeros_like(outcomes_N)
    for group in numbers.values():
        mates = group_ids_N == group
        if mates.sum() > 1:
            centred = outcomes_N[mates] - outcomes_N[mates].mean()
            advantages_N[mates] = centred / (outcomes_N[mates].std() + OUTCOME_FLOOR)
    no_gains_NK = torch.full_like(rewards_NK, torch.nan)
    return Evidence(no_gains_NK, rewards_NK, outcomes_N, advantages_N, num_turns_N, group_ids_N), scores_NFK


def _unused(record: dict[str, Any]) -> list[float | None]:
    raise AssertionError("scores are there already")
