"""A2TGPOConfig: the settings of `GRPOConfig` and the few that differ, checked at construction."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from trl import GRPOConfig

from .recipe_file import nearest


Normalization = Literal["turn_group", "pooled", "none"]
RatioLevel = Literal["turn", "token", "sequence"]
GainMeasure = Literal["logprob", "probability"]
AnswerAliases = Literal["first", "max", "mean"]
Credit = Literal["a2tgpo", "grpo"]

# The parent's aggregations around a clipped surrogate.
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
LOSS_TYPES_WHY = (
    " Of the others, sapo and vespo have no clip range to adapt, cispo reads epsilon as something else, and luspo "
    "weighs whole sequences by their length."
)
ANSWER_SLOT = "{answer}"

# The values that a method's paper gives to the switches below. What is set by hand wins over them.
CREDIT: dict[str, dict[str, Any]] = {
    "a2tgpo": {
        "gain_weight": 0.3,
        "clip_adaptation": 0.3,
        "importance_sampling_level": "turn",
        "epsilon": 3e-3,
        "epsilon_high": 4e-3,
    },
    "grpo": {
        "gain_weight": 0.0,
        "clip_adaptation": 0.0,
        "importance_sampling_level": "token",
        "epsilon": 0.2,
        "epsilon_high": 0.2,
    },
}


def _by_credit(name: str, text: str) -> Any:
    """A field whose default is the preset's value; `__post_init__` puts it there."""
    values = ", ".join(f"{values[name]!r} for {preset}" for preset, values in CREDIT.items())
    return field(default=None, metadata={"help": f"{text} If it is not set: {values}."})


@dataclass
class A2TGPOConfig(GRPOConfig):
    """Settings of [`A2TGPOTrainer`]: everything in `GRPOConfig`, with the defaults of the A2TGPO paper where they
    differ, and one switch for each component of the method.

    `credit="grpo"` is TRL's GRPO, bit for bit, and no information gain is computed.
    """

    _VALID_CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "credit": tuple(CREDIT),
        "gain_normalization": get_args(Normalization),
        "importance_sampling_level": get_args(RatioLevel),
        "gain_measure": get_args(GainMeasure),
        "answer_aliases": get_args(AnswerAliases),
        "loss_type": LOSS_TYPES,
    }
    # name -> (lowest, highest, lowest allowed itself, highest allowed itself)
    _VALID_RANGES: ClassVar[dict[str, tuple[float, float, bool, bool]]] = {
        "gain_weight": (0.0, math.inf, True, False),
        "discount": (0.0, 1.0, True, True),
        "clip_adaptation": (0.0, 1.0, True, False),
        "gain_token_budget": (1, math.inf, True, False),
        "epsilon": (0.0, 1.0, False, False),
        "epsilon_high": (0.0, math.inf, False, False),
    }

    credit: Credit = field(
        default="a2tgpo",
        metadata={"help": "Method whose values the switches have that are not set: 'a2tgpo', or 'grpo' (TRL's)."},
    )
    epsilon: float = _by_credit(
        "epsilon", "Width of the clip range below 1, before it is scaled per turn. Above 0, below 1."
    )
    epsilon_high: float = _by_credit(
        "epsilon_high",
        "Width of the clip range above 1, before it is scaled per turn. If only `epsilon` is set: the same.",
    )
    importance_sampling_level: RatioLevel = _by_credit(
        "importance_sampling_level",
        "Span whose tokens share one importance ratio: 'turn' (A2TGPO), 'token' (GRPO) or 'sequence' (GSPO, with the "
        "gradient kept per token).",
    )
    gain_weight: float = _by_credit(
        "gain_weight", "Weight of the accumulated information gain beside the outcome advantage. At least 0."
    )
    gain_normalization: Normalization = field(
        default="turn_group",
        metadata={
            "help": "What a gain is compared with: 'turn_group' (turns at the same depth of the same prompt), "
            "'pooled' (all turns of the same prompt) or 'none'."
        },
    )
    discount: float = field(
        default=1.0,
        metadata={"help": "Discount of later gains, per turn. From 0 to 1; 0 keeps a turn's own gain only."},
    )
    rescale_accumulation: bool = field(
        default=True,
        metadata={"help": "Whether to divide an accumulated gain by the square root of its number of terms."},
    )
    clip_adaptation: float = _by_credit(
        "clip_adaptation",
        "How far the clip range of a turn follows its gain: the range is scaled by between 1 minus and 1 plus this. "
        "At least 0, below 1; 0 turns adaptive clipping off.",
    )
    gain_measure: GainMeasure = field(
        default="logprob",
        metadata={
            "help": "Value of a context: the mean log-probability per answer token ('logprob'), or its exponential "
            "('probability')."
        },
    )
    answer_column: str = field(
        default="answer",
        metadata={"help": "Dataset column with the ground-truth answer: a string, or a list of accepted strings."},
    )
    answer_aliases: AnswerAliases = field(
        default="first",
        metadata={"help": "Which accepted answer is scored: the 'first', the best ('max') or their average ('mean')."},
    )
    probe_template: str = field(
        default="<answer>{answer}</answer>",
        metadata={
            "help": "What the policy is imagined to write when it answers at once; only the tokens of {answer} are "
            "scored. It starts where a turn starts, right after the generation prompt."
        },
    )
    gain_token_budget: int = field(
        default=16384,
        metadata={
            "help": "Most tokens (padding included) in one forward of the gain pass on one device. A single longer "
            "rollout goes alone. Lower it if the gain pass runs out of memory. At least 1."
        },
    )

    def __post_init__(self):
        self._fill_in_credit()
        for name, choices in self._VALID_CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                valid = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {valid}; got {value!r}.{nearest(str(value), choices)}")
        for name, limits in self._VALID_RANGES.items():
            _check_range(name, getattr(self, name), *limits)
        if not isinstance(self.rescale_accumulation, bool):
            raise ValueError(f"rescale_accumulation must be true or false; got {self.rescale_accumulation!r}.")
        if not isinstance(self.gain_token_budget, int):
            raise ValueError(f"gain_token_budget must be a whole number of tokens; got {self.gain_token_budget!r}.")
        if not isinstance(self.probe_template, str) or self.probe_template.count(ANSWER_SLOT) != 1:
            raise ValueError(f"probe_template must contain {ANSWER_SLOT} exactly once; got {self.probe_template!r}.")
        if self.epsilon * (1 + self.clip_adaptation) >= 1:
            raise ValueError(
                f"epsilon * (1 + clip_adaptation) must be below 1, or the widest clip range would reach a ratio of 0; "
                f"got epsilon={self.epsilon}, clip_adaptation={self.clip_adaptation}."
            )
        super().__post_init__()

    def _fill_in_credit(self) -> None:
        preset = CREDIT.get(self.credit, {})  # an unknown name is reported with the other choices
        if self.epsilon is not None and self.epsilon_high is None:
            self.epsilon_high = self.epsilon
        for name, value in preset.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    @property
    def uses_gain(self) -> bool:
        """Whether anything reads the information gain. If nothing does, it is not computed."""
        return self.gain_weight > 0 or self.clip_adaptation > 0


def _check_range(name: str, value: Any, low: float, high: float, low_allowed: bool, high_allowed: bool) -> None:
    interval = f"{'[' if low_allowed else '('}{low}, {high}{']' if high_allowed else ')'}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number in {interval}; got {value!r}.")
    above = value >= low if low_allowed else value > low
    below = value <= high if high_allowed else value < high
    if not (above and below):  # also NaN, which compares false
        raise ValueError(f"{name} must be in {interval}; got {value!r}.")
