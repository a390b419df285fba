"""A2TGPOConfig: the settings of `GRPOConfig` and the few that differ, checked at construction."""

import copy
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

from trl import GRPOConfig

from .credit import DEFAULTS, METHODS, Method, Preset, Switches, find_method, preset_of
from .information_gain.probes import ANSWER_SLOT
from .lookup import nearest, read_yaml
from .rollout.failures import Policy, complete_policy


Normalization = Literal["turn_group", "pooled", "none"]
RatioLevel = Literal["turn", "token", "sequence"]
GainMeasure = Literal["logprob", "probability"]
AnswerAliases = Literal["first", "max", "mean"]

LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo", "vespo")
# Those that do not clip a ratio to a range around 1, and what they do instead.
WITHOUT_CLIP_RANGE = {
    "cispo": "caps the ratio at epsilon_high itself",
    "sapo": "fades ratios out without an edge",
    "vespo": "weighs whole rollouts",
}


def _by_credit(name: str, text: str) -> Any:
    """A field whose default is the preset's value; `__post_init__` puts it there."""
    values = {preset: preset_of(find_method(preset)).values[name] for preset in METHODS}
    usual = max(values.values(), key=[*values.values()].count)
    others = [f"{value!r} for {preset}" for preset, value in values.items() if value != usual]
    default = f"{', '.join(others)}, else {usual!r}" if others else repr(usual)
    return field(default=None, metadata={"help": f"{text} If it is not set: {default}."})


@dataclass
class A2TGPOConfig(GRPOConfig):
    """Settings of [`A2TGPOTrainer`]: everything in `GRPOConfig`, with the defaults of the A2TGPO paper where they
    differ, and one switch for each component of the method.

    `credit="grpo"` is TRL's GRPO, bit for bit on the same rollouts, and no information gain is computed.

    Where a turn or a sequence shares a ratio, the policy's dropout is off, `disable_dropout` or not. With
    `disable_dropout` it is off throughout: TRL leaves those rates that a model hands to a function, such as
    `attention_dropout`.

    Evaluations sample and score: they have no loss, and `metric_for_best_model` is "reward" unless it is set.
    Of several evaluation sets each logs metrics by its name, such as `eval_easy_reward`, and it names one of those.
    """

    _VALID_CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "gain_normalization": get_args(Normalization),
        "importance_sampling_level": get_args(RatioLevel),
        "gain_measure": get_args(GainMeasure),
        "answer_aliases": get_args(AnswerAliases),
        "loss_type": LOSS_TYPES,
        "on_outage": ("stop", "continue"),
    }
    # name -> (lowest, highest, lowest allowed itself, highest allowed itself)
    _VALID_RANGES: ClassVar[dict[str, tuple[float, float, bool, bool]]] = {
        "gain_weight": (0.0, math.inf, True, False),
        "beta": (0.0, math.inf, True, False),
        "outcome_weight": (0.0, math.inf, True, False),
        "turn_reward_weight": (0.0, math.inf, True, False),
        "failure_shaping": (0.0, 1.0, True, True),
        "success_reward": (-math.inf, math.inf, False, False),
        "discount": (0.0, 1.0, True, True),
        "clip_adaptation": (0.0, 1.0, True, False),
        "gain_token_budget": (1, math.inf, True, False),
        "sampling_batch_size": (1, math.inf, True, False),
        "epsilon": (0.0, 1.0, False, False),
        "epsilon_high": (0.0, math.inf, False, False),
        "tool_timeout": (0.0, math.inf, False, False),
        "tool_concurrency": (1, math.inf, True, False),
        "max_calls_per_turn": (1, math.inf, True, False),
        "max_result_tokens": (1, math.inf, True, False),
        "max_hung_calls": (0, math.inf, True, False),
        "outage_patience": (0.0, math.inf, True, False),
        "resample_limit": (0, math.inf, True, False),
    }
    _MAY_BE_NONE: ClassVar[tuple[str, ...]] = (
        *("tool_timeout", "max_calls_per_turn", "max_result_tokens", "sampling_batch_size"),
    )
    _SWITCHES: ClassVar[tuple[str, ...]] = (
        *("rescale_accumulation", "stream_turns", "tool_replay", "resume_changed"),
    )
    _WHOLE_NUMBERS: ClassVar[tuple[str, ...]] = (
        *("gain_token_budget", "tool_concurrency", "max_calls_per_turn", "max_result_tokens", "max_hung_calls"),
        *("resample_limit", "sampling_batch_size"),
    )

    credit: str = field(
        default="a2tgpo",
        metadata={
            "help": "Method that credits the turns, whose paper's values the switches have that are not set: "
            "'a2tgpo', 'grpo', 'gspo', 'atpo', 'igpo', 'igpo_joint', 'gtpo', 'mt_grpo', 'hybrid', or the import path "
            "of a function (file.py:function, package.module:function)."
        },
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
    loss_type: str = _by_credit(
        "loss_type",
        "What becomes of ratios, and how the loss is summed up over tokens, as TRL explains: 'dapo', 'grpo', "
        "'dr_grpo', 'bnpo' or 'luspo'; with clip_adaptation 0 also 'cispo', 'sapo' or 'vespo', which clip nothing.",
    )
    beta: float = _by_credit("beta", "Weight of the KL divergence from the reference model. At least 0; 0: no KL.")
    outcome_weight: float = _by_credit(
        "outcome_weight", "Weight of the outcome of the whole rollout beside the credit of its turns. At least 0."
    )
    gain_weight: float = _by_credit(
        "gain_weight", "Weight of the accumulated information gain beside the outcome advantage. At least 0."
    )
    turn_reward_weight: float = _by_credit(
        "turn_reward_weight",
        "Weight of the accumulated turn rewards beside gains and outcome. At least 0; 0: they are logged only.",
    )
    turn_rewards: dict[str, float] | str | None = _by_credit(
        "turn_rewards",
        "Rewards of single turns and what each is worth, as a mapping or a YAML file that holds it: names of "
        "ready-made ones ('bad_format', 'failed_call', 'duplicate_call', 'read_only', 'state_changing', "
        "'environment') or import paths of functions.",
    )
    gain_normalization: Normalization = _by_credit(
        "gain_normalization",
        "What a gain (a turn reward, a return) is compared with: 'turn_group' (turns at the same depth of the same "
        "prompt), 'pooled' (all turns of the same prompt) or 'none'.",
    )
    discount: float = _by_credit(
        "discount", "Discount of what comes later, per turn. From 0 to 1; 0 keeps what is a turn's own only."
    )
    rescale_accumulation: bool = _by_credit(
        "rescale_accumulation", "Whether to divide an accumulated sum by the square root of its number of terms."
    )
    failure_shaping: float = _by_credit(
        "failure_shaping",
        "Share of what it lacks to success_reward that a failed rollout earns if what it tried is just like what "
        "passing rollouts of its group did (GTPO); less in proportion. From 0 to 1.",
    )
    shaping_embedding: str = field(
        default="auto",
        metadata={
            "help": "What compares failed rollouts with passing ones: 'ngrams' (hashed n-grams of tokens), the name "
            "of a sentence encoder, the import path of a function (list of texts -> tensor), or 'auto': a small "
            "sentence encoder if it is on this machine, else 'ngrams'."
        },
    )
    success_reward: float = field(
        default=1.0, metadata={"help": "Reward from which on a rollout has passed, for failure_shaping."}
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
        metadata={
            "help": "Dataset column with the ground-truth answer: a string, or a list of accepted strings. An "
            "environment may give it instead: its class declares `answer: str | None = None`, and `reset` sets it."
        },
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
    sampling_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rollouts that transformers' generation samples at once in a process, while the others of the "
            "batch wait: lower it if sampling runs out of memory. At least 1. None: all of them. With vLLM, which "
            "sees to that by itself, it must be None."
        },
    )
    resample_limit: int = field(
        default=0,
        metadata={
            "help": "How often the prompts of groups that teach nothing (equal rewards, equal gains) are rolled out "
            "again before a batch is trained on, in the manner of DAPO; at most so many times. 0: never."
        },
    )
    seeded_rollouts: bool | None = field(
        default=None,
        metadata={
            "help": "Whether each rollout draws from a seed of its own (made of `seed`, the step and its place in the "
            "batch), so that the same seed is the same run on any number of processes. None: with transformers' "
            "generation, but not with vLLM, whose sampler is slower then."
        },
    )

    tool_timeout: float | None = field(
        default=60.0,
        metadata={"help": "Seconds that a call may take, above 0. A tool's own limit wins. None: no limit."},
    )
    tool_concurrency: int = field(default=64, metadata={"help": "Calls that run at once in a process. At least 1."})
    tool_settings: dict[str, dict[str, Any]] | str | None = field(
        default=None,
        metadata={
            "help": "By name of a tool: timeout, retries, backoff, concurrency, max_result_tokens, cache, final, "
            "process. As the decorator `a2tgpo_trl.tools.tool` says them in Python, over which these win."
        },
    )
    max_calls_per_turn: int | None = field(
        default=16,
        metadata={"help": "Calls that one turn may make; the rest are not made. At least 1. None: no limit."},
    )
    max_result_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens of a tool's result that the policy reads; the rest is cut off. None: no limit."},
    )
    failure_policy: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "By way in which a turn failed (unparsed_call, unknown_tool, bad_arguments, tool_error, timeout, "
            "result_cut, over_budget, context_full): 'tell' the policy, 'end' the rollout, or 'exclude' it from its "
            "group and the loss. What is not named is told; context_full ends."
        },
    )
    max_hung_calls: int = field(
        default=16,
        metadata={
            "help": "Calls that may be out beyond their time at once. With more, further calls wait until some have "
            "come back; if they do not within outage_patience, the run saves a checkpoint and stops. At least 0."
        },
    )
    on_outage: Literal["stop", "continue"] = field(
        default="stop",
        metadata={
            "help": "What happens when a tool whose check fails stays down: the run saves a checkpoint and stops "
            "('stop'), or goes on while calls fail ('continue')."
        },
    )
    outage_patience: float = field(
        default=300.0,
        metadata={"help": "Seconds that a tool which is down, or calls that hang, are waited for. At least 0."},
    )
    stream_turns: bool = field(
        default=True,
        metadata={
            "help": "Whether a colocated vLLM (without tensor parallelism) goes on with each rollout as soon as its "
            "tools have answered, instead of waiting for all."
        },
    )
    tool_cache: str | None = field(
        default=None,
        metadata={
            "help": "File in which calls and results are kept (JSON lines). A call that is in it is not made again. "
            "Calls on environments are made always."
        },
    )
    tool_replay: bool = field(
        default=False,
        metadata={"help": "Whether a call that is not in `tool_cache` is an error instead of being made."},
    )
    resume_changed: bool = field(
        default=False,
        metadata={
            "help": "Whether a run may go on from a checkpoint that was saved with other settings, data or policy."
        },
    )

    def __post_init__(self):
        preset = self._fill_in_credit()
        self._check_choices_and_ranges()
        self._check_tools()
        if not isinstance(self.probe_template, str) or self.probe_template.count(ANSWER_SLOT) != 1:
            raise ValueError(f"probe_template must contain {ANSWER_SLOT} exactly once; got {self.probe_template!r}.")
        if self.epsilon * (1 + self.clip_adaptation) >= 1:
            raise ValueError(
                f"epsilon * (1 + clip_adaptation) must be below 1, or the widest clip range would reach a ratio of 0; "
                f"got epsilon={self.epsilon}, clip_adaptation={self.clip_adaptation}."
            )
        self._check_loss()
        self._check_noise()
        self._name_best_metric()
        try:
            super().__post_init__()
        except ValueError as error:
            if "bf16/gpu" not in str(error):
                raise
            raise ValueError(
                "bf16, which is TRL's default, needs an accelerator that computes in it, and there is none here. Set "
                "bf16: false (in Python, bf16=False) to train in float32, or fp16: true on an older GPU."
            ) from error
        self._check_effect(preset)
        self._check_seeds()
        if self.sampling_batch_size is not None and (self.use_vllm or self.use_transformers_continuous_batching):
            raise ValueError(
                "sampling_batch_size has no effect with vLLM or continuous batching, which sample as many rollouts at "
                "once as their memory holds. Leave it out."
            )

    def _name_best_metric(self) -> None:
        if self.metric_for_best_model in ("loss", "eval_loss"):
            raise ValueError(
                f"metric_for_best_model={self.metric_for_best_model!r}: evaluations sample and score, they have no "
                "loss. Name what they log, such as 'reward' or 'rewards/exact_match/mean'."
            )
        follows = self.load_best_model_at_end or self.lr_scheduler_type == "reduce_lr_on_plateau"
        if follows and self.metric_for_best_model is None:
            setattr(self, "metric_for_best_model", "reward")  # noqa: B010  # the parent's would be the loss

    def _fill_in_credit(self) -> Preset:
        if self.credit not in METHODS and ":" not in str(self.credit):
            raise ValueError(
                f"credit must be one of {', '.join(map(repr, METHODS))}, or file.py:function, or "
                f"package.module:function; got {self.credit!r}.{nearest(str(self.credit), METHODS)}"
            )
        preset = preset_of(self.credit_method)
        if self.epsilon is not None and self.epsilon_high is None:
            self.epsilon_high = self.epsilon
        for name, value in preset.values.items():
            if getattr(self, name) is None:
                setattr(self, name, copy.deepcopy(value))
        self.turn_rewards = _turn_rewards(self.turn_rewards)
        return preset

    def _check_effect(self, preset: Preset) -> None:
        """Nothing is set that the method does not read."""
        if self.failure_shaping == 0 and (self.shaping_embedding, self.success_reward) != ("auto", 1.0):
            raise ValueError("shaping_embedding and success_reward have no effect without failure_shaping.")
        for name in preset.without_effect:
            neutral = preset.values[name] if name in DEFAULTS else type(self).__dataclass_fields__[name].default
            if getattr(self, name) != neutral:
                raise ValueError(
                    f"{name} has no effect with credit={self.credit!r}: leave it out. It would be {neutral!r}."
                )

    def _check_loss(self) -> None:
        if self.loss_type in WITHOUT_CLIP_RANGE and self.clip_adaptation > 0:
            raise ValueError(
                f"loss_type={self.loss_type!r} {WITHOUT_CLIP_RANGE[self.loss_type]}, so that clip_adaptation has no "
                "clip range to scale. Set clip_adaptation=0."
            )
        if self.loss_type == "cispo" and self.epsilon_high < 1 and self.credit != "grpo":
            raise ValueError(
                f"loss_type='cispo' caps the ratio at epsilon_high itself, and {self.epsilon_high} would scale every "
                "token down. Set epsilon_high to the highest weight that a token may have, such as 5.0."
            )

    def _check_noise(self) -> None:
        if self.neftune_noise_alpha is not None and self.importance_sampling_level != "token":
            raise ValueError(
                f"neftune_noise_alpha adds noise to each forward, and that alone moves the ratio of a "
                f"{self.importance_sampling_level} out of its clip range. Leave it out, or set "
                "importance_sampling_level='token'."
            )

    def _check_choices_and_ranges(self) -> None:
        for name, choices in self._VALID_CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                valid = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {valid}; got {value!r}.{nearest(str(value), choices)}")
        for name, limits in self._VALID_RANGES.items():
            value = getattr(self, name)
            if value is None and name in self._MAY_BE_NONE:
                continue
            _check_range(name, value, *limits)
            if name in self._WHOLE_NUMBERS and not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number; got {value!r}.")
        for name in self._SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false; got {getattr(self, name)!r}.")

    def _check_tools(self) -> None:
        self.tool_settings = _mapping("tool_settings", self.tool_settings)
        self.failure_policy = _mapping("failure_policy", self.failure_policy)
        self.failure_policies  # noqa: B018  # raises for names that there are not
        if self.tool_replay and self.tool_cache is None:
            raise ValueError("tool_replay needs a file to replay from: name it with tool_cache.")

    def _check_seeds(self) -> None:
        if self.seeded_rollouts is None:
            return
        if not isinstance(self.seeded_rollouts, bool):
            raise ValueError(f"seeded_rollouts must be true, false or None; got {self.seeded_rollouts!r}.")
        for reason, holds in self._cannot_seed.items():
            if self.seeded_rollouts and holds:
                raise ValueError(f"seeded_rollouts=True does not work with {reason}. Leave it out.")

    @property
    def _cannot_seed(self) -> dict[str, bool]:
        streams = self.stream_turns and self.vllm_mode == "colocate" and self.vllm_tensor_parallel_size == 1
        return {
            "vLLM but colocated, with stream_turns and one GPU a process": self.use_vllm and not streams,
            "use_transformers_continuous_batching, which samples rows in batches of its own": (
                self.use_transformers_continuous_batching
            ),
            "full_determinism, since sums along the vocabulary are not deterministic on GPUs": self.full_determinism,
        }

    @property
    def seeds_rollouts(self) -> bool:
        """Whether each rollout draws from a seed of its own."""
        if self.seeded_rollouts is not None:
            return self.seeded_rollouts
        return not self.use_vllm and not any(self._cannot_seed.values())

    @property
    def failure_policies(self) -> dict[str, Policy]:
        """What is done about each way in which a turn fails."""
        return complete_policy(cast(dict[str, str] | None, self.failure_policy))

    @property
    def credit_method(self) -> Method:
        """What credits the turns."""
        return find_method(self.credit)

    @property
    def credit_switches(self) -> Switches:
        """The settings that it reads."""
        return Switches(**{switch.name: getattr(self, switch.name) for switch in fields(Switches)})

    @property
    def trains_as_grpo(self) -> bool:
        """Whether nothing in the loss differs from TRL's GRPO, with which training is then the same to the bit."""
        return not self.uses_gain and self.turn_reward_weight == 0 and self.importance_sampling_level == "token"

    @property
    def uses_gain(self) -> bool:
        """Whether anything reads the information gain. If nothing does, it is not computed."""
        return self.gain_weight > 0 or self.clip_adaptation > 0


def _mapping(name: str, value: Any) -> dict[str, Any] | None:
    """A mapping of a recipe, or JSON of the command line."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} must be a mapping, or JSON with double quotes; got {value!r}.") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} must be a mapping of names; got {value!r}.")
    return value


def _turn_rewards(value: Any) -> dict[str, float]:
    """Names of turn rewards and weights; from a YAML file, where its path is given."""
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        if not Path(value).is_file():
            raise ValueError(f"turn_rewards: there is no file {value}, beside the recipe or in {Path.cwd()}.")
        content = read_yaml(Path(value))
        if "turn_rewards" not in content:
            raise ValueError(f"turn_rewards: {value} must hold the key turn_rewards, with the mapping below it.")
        value = content["turn_rewards"]
    weights = _mapping("turn_rewards", value) or {}
    for name, weight in weights.items():
        _check_range(f"turn_rewards: {name}", weight, -math.inf, math.inf, False, False)
    return weights


def _check_range(name: str, value: Any, low: float, high: float, low_allowed: bool, high_allowed: bool) -> None:
    interval = f"{'[' if low_allowed else '('}{low}, {high}{']' if high_allowed else ')'}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number in {interval}; got {value!r}.")
    above = value >= low if low_allowed else value > low
    below = value <= high if high_allowed else value < high
    if not (above and below):  # also NaN, which compares false
        raise ValueError(f"{name} must be in {interval}; got {value!r}.")
