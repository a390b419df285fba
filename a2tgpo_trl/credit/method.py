"""evidence of a batch, switches -> advantages (N,K): the signature that all methods share.

A method is a function `(evidence, switches) -> advantages_NK`. The decorator `method(...)` gives it its paper's values
for settings of `A2TGPOConfig`. Settings that the user gives override them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..information_gain.rounding import GAIN_FLOOR
from .scores import NORMALIZATIONS, Floor, clip_scale, returns, state_group_zscore, turn_group_zscore, weighted_sum


@dataclass(frozen=True)
class Evidence:
    """What methods read. N rollouts of all ranks, K turns; rollouts of a prompt have the same number in `group_ids_N`.

    gains_NK              information gain, NaN where a turn has none (the answer turn); none is computed unless
                          gain_weight or clip_adaptation is above 0
    turn_rewards_NK       weighted sum of the turn rewards, NaN where a turn has none
    outcomes_N            weighted sum of the rewards, shaped for failures; NaN if the rollout was not scored
    outcome_advantages_N  TRL's advantages: rewards compared with those of the group, scaled by `scale_rewards`
    num_turns_N           turns in the loss, the answer turn included; 0 for a rollout left out of it
    gain_floor            how much gains may differ by rounding, for all turns or for each (N,K); all else is exact
    states_NK             number of the state in which a turn began, among those of its prompt; similar states have
                          the same number (`states.py`), -1 where there is no turn. None unless `needs_states` or
                          gain_groups asks for them
    """

    gains_NK: Tensor
    turn_rewards_NK: Tensor
    outcomes_N: Tensor
    outcome_advantages_N: Tensor
    num_turns_N: Tensor
    group_ids_N: Tensor
    gain_floor: Floor = GAIN_FLOOR
    states_NK: Tensor | None = None

    @property
    def is_turn_NK(self) -> Tensor:
        """Whether a rollout has this turn."""
        turns = torch.arange(self.gains_NK.size(1), device=self.num_turns_N.device)
        return turns < self.num_turns_N.unsqueeze(1)

    @property
    def stopped_NK(self) -> Tensor:
        """Whether a rollout in the loss had stopped before this depth: it answered or failed, and gained no more."""
        turns = torch.arange(self.gains_NK.size(1), device=self.num_turns_N.device)
        last_N1 = self.num_turns_N.unsqueeze(1) - 1
        return (last_N1 >= 0) & (turns >= last_N1) & self.gains_NK.isnan()

    def at_last_turn(self, values_N: Tensor) -> Tensor:
        """Return each rollout's value at its last turn, 0 elsewhere: (N,K)."""
        turns = torch.arange(self.gains_NK.size(1), device=self.num_turns_N.device)
        return torch.where(turns == self.num_turns_N.unsqueeze(1) - 1, values_N.unsqueeze(1), 0.0)


@dataclass(frozen=True, kw_only=True)
class Switches:
    """The settings that methods read; `A2TGPOConfig` explains them."""

    outcome_weight: float = 1.0
    gain_weight: float = 0.0
    turn_reward_weight: float = 1.0
    discount: float = 1.0
    gain_normalization: str = "turn_group"
    gain_groups: str = "turn"
    stopped_count: bool = False
    rescale_accumulation: bool = False
    clip_adaptation: float = 0.0
    state_weight: float = 1.0
    scale_rewards: str = "group"  # a setting of the parent

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Switches":
        """Choose the switches from the values of all settings, by name."""
        return cls(**{switch.name: values[switch.name] for switch in fields(cls) if switch.name in values})

    @property
    def uses_gain(self) -> bool:
        """Whether anything reads the information gain. If nothing does, it is not computed."""
        return self.gain_weight > 0 or self.clip_adaptation > 0

    def normalize(self, values_NK: Tensor, group_ids_N: Tensor, floor: Floor = 0.0) -> Tensor:
        """Compare each turn's number with those that `gain_normalization` says; NaN stays NaN.

        Numbers that differ from the mean by no more than the floor count as the mean.
        """
        return NORMALIZATIONS[self.gain_normalization](values_NK, group_ids_N, floor)

    def gain_scores(self, evidence: Evidence) -> Tensor:
        """Return each turn's compared gain, without effects of rounding."""
        if self.gain_groups == "state":
            assert evidence.states_NK is not None
            return state_group_zscore(evidence.gains_NK, evidence.states_NK, evidence.group_ids_N, evidence.gain_floor)
        if self.stopped_count:
            compared = (evidence.gains_NK, evidence.group_ids_N, evidence.gain_floor, evidence.stopped_NK)
            return turn_group_zscore(*compared)
        return self.normalize(evidence.gains_NK, evidence.group_ids_N, evidence.gain_floor)

    def signal(self, evidence: Evidence) -> Tensor:
        """Return the weighted sum of gains and turn rewards, in their own units; NaN where a turn has neither."""
        return weighted_sum((self.gain_weight, evidence.gains_NK), (self.turn_reward_weight, evidence.turn_rewards_NK))

    def signal_floor(self, evidence: Evidence) -> Tensor:
        """Return how much signals may differ by rounding; 0 for those without a gain."""
        return torch.where(evidence.gains_NK.isnan(), 0.0, self.gain_weight * evidence.gain_floor)

    def returns_floor(self, evidence: Evidence) -> Tensor:
        """Return the same for returns: the highest floor of the gains that they hold.

        In a sum of gains only the first and the last value remain: two, as in one gain.
        """
        floor_NK = self.signal_floor(evidence)
        highest_from_here_NK = floor_NK.flip(1).cummax(dim=1).values.flip(1)
        return torch.where(self.returns(floor_NK, evidence) > 0, highest_from_here_NK, 0.0)

    def returns(self, rewards_NK: Tensor, evidence: Evidence) -> Tensor:
        """Return what each turn and later ones earned; NaN where a rollout has no such turn."""
        return returns(rewards_NK, evidence.is_turn_NK, self.discount, self.rescale_accumulation)


Method = Callable[[Evidence, Switches], Tensor]

# Values for methods that do not set their own: no gain, and the ratio and clip range of GRPO.
DEFAULTS: dict[str, Any] = {
    **{switch.name: switch.default for switch in fields(Switches) if switch.name != "scale_rewards"},
    "first_gain": True,
    "last_gain": True,
    "gain_measure": "logprob",
    "state_likeness": 1.0,
    "failure_shaping": 0.0,
    "importance_sampling_level": "token",
    "epsilon": 0.2,
    "epsilon_high": 0.2,
    "beta": 0.0,
    "loss_type": "dapo",
    "turn_rewards": {},
}

# A clip range that follows the gain reads these, whatever method credits the turn.
OF_GAINS = ("gain_normalization", "gain_groups", "stopped_count")

# The parent's settings for outcome advantages; they have no effect on methods that do not read these.
OF_THE_OUTCOME = ("scale_rewards", "multi_objective_aggregation")


@dataclass(frozen=True)
class Preset:
    """What the decorator `method` says about a function."""

    values: dict[str, Any]  # for all settings in DEFAULTS
    without_effect: tuple[str, ...] = ()  # settings that the method does not read
    needs_weight: tuple[str, ...] = ()  # settings that it reads only with a gain_weight or a turn_reward_weight
    needs_turn_rewards: bool = False
    needs_states: bool = False

    def unread(self, values: Mapping[str, Any]) -> list[str]:
        """Settings that have no effect with these values of others; setting one is an error."""
        has_weight = values["gain_weight"] > 0 or values["turn_reward_weight"] > 0
        names = self.without_effect if has_weight else (*self.without_effect, *self.needs_weight)
        return [name for name in names if name not in OF_GAINS or values["clip_adaptation"] == 0]

    def reads_states(self, gain_groups: str) -> bool:
        """Whether the method, or this way to compare gains, reads the states in which turns began."""
        return self.needs_states or gain_groups == "state"

    @property
    def switches(self) -> Switches:
        """The values that the method itself reads."""
        return Switches.of(self.values)


_PRESET = "__a2tgpo_credit__"


def method(
    *,
    without_effect: Iterable[str] = (),
    needs_weight: Iterable[str] = (),
    needs_turn_rewards: bool = False,
    needs_states: bool = False,
    **values: Any,
) -> Callable[[Method], Method]:
    """Give a method its paper's values of settings in `DEFAULTS`, which replace the defaults.

    A user who sets one of `without_effect` gets an error; one of `needs_weight`, unless gains or turn rewards have a
    weight.

    Example: the gain of a turn as it is, and nothing else.

    ```python
    >>> @method(gain_weight=1.0, gain_normalization="none", without_effect=["discount"])
    ... def plain_gain(evidence, switches):
    ...     return evidence.gains_NK.nan_to_num(nan=0.0)
    ```
    """
    unknown = {*values, *without_effect, *needs_weight} - {*DEFAULTS, *OF_THE_OUTCOME}
    if unknown:
        known = ", ".join((*DEFAULTS, *OF_THE_OUTCOME))
        raise ValueError(f"method(): there is no setting {', '.join(sorted(unknown))}; use {known}.")
    preset = Preset(
        {**DEFAULTS, **values}, tuple(without_effect), tuple(needs_weight), needs_turn_rewards, needs_states
    )

    def decorate(function: Method) -> Method:
        setattr(function, _PRESET, preset)
        return function

    return decorate


def preset_of(function: Method) -> Preset:
    """Return a function's preset; the defaults if it has none."""
    return getattr(function, _PRESET, Preset(DEFAULTS))


def gain_clip_scale(evidence: Evidence, switches: Switches) -> Tensor:
    """Return the scale of each turn's clip range by its gain, whatever method credits the turn: (N,K)."""
    return clip_scale(switches.gain_scores(evidence), switches.clip_adaptation)
