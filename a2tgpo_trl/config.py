"""A2TGPOConfig: the settings of the method, on top of those of `ToolConfig` and `GRPOConfig`."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from trl import GRPOConfig

from .credit import DEFAULTS, METHODS, Method, Preset, Switches, find_method, preset_of
from .credit.credit_pass import CreditSettings
from .fields import Interval, check_number, documented, setting
from .information_gain.probes import ANSWER_SLOT
from .lookup import nearest, read_yaml
from .rollout.settings import ToolConfig, mapping


Normalization = Literal["turn_group", "pooled", "none"]
GainGroups = Literal["turn", "state"]
RatioLevel = Literal["turn", "token", "sequence"]
GainMeasure = Literal["logprob", "probability"]
AnswerAliases = Literal["first", "max", "mean"]
RecordFormat = Literal["jsonl", "parquet"]

LossType = Literal["dapo", "grpo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo", "vespo"]
# Losses that do not clip a ratio to a range around 1, and what they do instead.
WITHOUT_CLIP_RANGE = {
    "cispo": "caps the ratio at epsilon_high itself",
    "sapo": "fades ratios out gradually",
    "vespo": "weighs whole rollouts",
}

OF_CLIP_RANGE = ("epsilon", "epsilon_high", "delta", "clip_adaptation")
OF_GAIN_PASS = ("probe_template", "answer_aliases", "gain_token_budget")

TRACKERS = ("wandb", "trackio", "tensorboard")  # trackers that get more than metrics
TABLE_TURNS = 64

DEPTHS = ("turn_group", "turn")  # how gains are compared by depth


def _by_credit(name: str, text: str) -> Any:
    """Return a field whose default is the preset's value, which `__post_init__` fills in."""
    values = {preset: preset_of(find_method(preset)).values[name] for preset in METHODS}
    usual = max(values.values(), key=[*values.values()].count)
    others: dict[str, list[str]] = {}
    for preset, value in values.items():
        if value != usual:
            others.setdefault(repr(value), []).append(preset)
    default = "".join(f"{value} for {' and '.join(names)}, else " for value, names in others.items()) + repr(usual)
    return setting(None, f"{text} If it is not set: {default}.")


@documented(GRPOConfig)
@dataclass
class A2TGPOConfig(ToolConfig):
    """Settings of [`A2TGPOTrainer`]: everything in `ToolConfig` and `GRPOConfig`, with the defaults of A2TGPO's
    paper and code where they differ, and one switch for each component of the method.

    `credit="grpo"` is TRL's GRPO, bit for bit on the same rollouts, and no information gain is computed.

    If a turn or a sequence shares one ratio, the policy's dropout is off, whatever `disable_dropout` says. With
    `disable_dropout` every dropout is off, including rates that a model passes to a function, such as
    `attention_dropout`, which TRL leaves on.
    """

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        *ToolConfig.MAY_CHANGE,
        "eval_gains",
        "gain_token_budget",
        "record_every",
        "record_format",
        "record_megabytes",
        "record_tokens",
        "sampled_tokens_only",
        "shared_prefixes",
        "sorted_rows",
        "table_turns",
    )
    HEADINGS: ClassVar[dict[str, str]] = {
        "credit": "the credit of turns",
        "gain_groups": "the states in which turns begin",
        "turn_rewards": "rewards of turns and of failed rollouts",
        "importance_sampling_level": "ratios, the clip range and the loss",
        "gain_measure": "information gain",
        "record_every": "records of rollouts",
        "resample_limit": "groups that teach nothing",
    }

    credit: str = setting(
        "a2tgpo",
        f"Method that credits the turns: {', '.join(map(repr, METHODS))}, or the import path of a function "
        "(file.py:function, package.module:function). Switches that you do not set get the method's own values.",
    )
    gain_weight: Annotated[float, Interval(0.0)] = _by_credit(
        "gain_weight", "Weight of the accumulated information gain alongside the outcome advantage."
    )
    outcome_weight: Annotated[float, Interval(0.0)] = _by_credit(
        "outcome_weight", "Weight of the outcome of the whole rollout alongside the credit of its turns."
    )
    gain_normalization: Normalization = _by_credit(
        "gain_normalization",
        "What a gain (or turn reward, or return) is compared with: 'turn_group' (turns at the same depth of the same "
        "prompt), 'pooled' (all turns of the same prompt) or 'none'.",
    )
    discount: Annotated[float, Interval(0.0, 1.0, "[]")] = _by_credit(
        "discount", "Discount per turn of what comes later. With 0 a turn gets only what is its own."
    )
    rescale_accumulation: bool = _by_credit(
        "rescale_accumulation", "Whether to divide an accumulated sum by the square root of its number of terms."
    )
    gain_groups: GainGroups = _by_credit(
        "gain_groups",
        "Which turns of the prompt a gain is compared with if gain_normalization is 'turn_group': those at the same "
        "depth ('turn'), or those that began in the same state at any depth and, if there are none, those at the same "
        "depth ('state'). A state is what the policy had just read: the prompt, or the results of its last calls.",
    )
    stopped_count: bool = _by_credit(
        "stopped_count",
        "Whether rollouts that have stopped calling tools count, with a gain of 0, when the gains of later turns are "
        "compared. Without them gains say which call was better, but not whether to call at all, which is then left "
        "to the outcome: set it if outcome_weight is 0.",
    )
    state_likeness: Annotated[float, Interval(0.0, 1.0, "(]")] = _by_credit(
        "state_likeness",
        "Lowest ratio of matching characters (difflib's) at which two states count as the same. 1: only equal ones. "
        "GiGPO uses 0.9 for search results.",
    )
    state_weight: Annotated[float, Interval(0.0)] = _by_credit(
        "state_weight",
        "Weight of what a turn earned beyond others that began in its state, alongside the outcome advantage (GiGPO).",
    )
    turn_rewards: dict[str, float] | str | None = _by_credit(
        "turn_rewards",
        "Rewards of single turns and their weights, as a mapping or a YAML file that contains it: names of "
        "ready-made ones ('bad_format', 'failed_call', 'duplicate_call', 'read_only', 'state_changing', "
        "'environment') or import paths of functions.",
    )
    turn_reward_weight: Annotated[float, Interval(0.0)] = _by_credit(
        "turn_reward_weight",
        "Weight of the accumulated turn rewards alongside gains and outcome. 0: they are only logged.",
    )
    failure_shaping: Annotated[float, Interval(0.0, 1.0, "[]")] = _by_credit(
        "failure_shaping",
        "Share of the gap to success_reward that a failed rollout is given, multiplied by how similar its attempt is "
        "to those of the passing rollouts of its group (GTPO).",
    )
    shaping_embedding: str = setting(
        "auto",
        "What compares failed rollouts with passing ones: 'ngrams' (hashed n-grams of tokens), the name "
        "of a sentence encoder, the import path of a function (list of texts -> tensor), or 'auto': a small "
        "sentence encoder if it is on this machine, else 'ngrams'.",
    )
    success_reward: Annotated[float, Interval(ends="()")] = setting(
        1.0, "Reward at or above which a rollout has passed, for failure_shaping."
    )
    importance_sampling_level: RatioLevel = _by_credit(
        "importance_sampling_level",
        "Span whose tokens share one importance ratio: 'turn' (A2TGPO), 'token' (GRPO) or 'sequence' (GSPO, with the "
        "gradient kept per token).",
    )
    epsilon: Annotated[float, Interval(0.0, 1.0, "()")] = _by_credit(
        "epsilon", "Width of the clip range below 1, before it is scaled per turn."
    )
    epsilon_high: Annotated[float, Interval(0.0, ends="()")] = _by_credit(
        "epsilon_high",
        "Width of the clip range above 1, before it is scaled per turn. If you set only `epsilon`: the same.",
    )
    clip_adaptation: Annotated[float, Interval(0.0, 1.0)] = _by_credit(
        "clip_adaptation",
        "How far the clip range of a turn follows its gain: the range is scaled by a factor from 1 minus this "
        "to 1 plus this. 0 turns adaptive clipping off. No clip range has an effect when a batch is trained on in one "
        "update, as it is by default: all ratios are 1. See steps_per_generation and num_iterations.",
    )
    loss_type: LossType = _by_credit(
        "loss_type",
        "How the loss uses ratios and how it is summed over tokens, as TRL explains: 'dapo', 'grpo', "
        "'dr_grpo', 'bnpo' or 'luspo'; with clip_adaptation 0 also 'cispo', 'sapo' or 'vespo', which clip nothing.",
    )
    beta: Annotated[float, Interval(0.0)] = _by_credit(
        "beta", "Weight of the KL divergence from the reference model. 0: no KL."
    )
    sorted_rows: bool = setting(
        True,
        "Whether rollouts are assigned to the micro-batches of an optimizer step by their lengths and prompts, "
        "which needs less padding, instead of at random. The gradient is the same sum; a loss that is not a sum over "
        "rows (bnpo, or one that uses entropies) keeps TRL's random order, and so does one that knows no turns, such "
        "as grpo's and gspo's.",
    )
    sampled_tokens_only: bool = setting(
        True,
        "Whether the policy's head is given only sampled tokens, the only ones that are trained on, and not the "
        "results of tools. With adapters that put virtual tokens before the prompt, and with credit grpo, it is given "
        "all tokens.",
    )
    shared_prefixes: bool = setting(
        True,
        "Whether a forward pass reads the common beginning of rollouts of a micro-batch only once: their prompt, and "
        "often a first call and its result. Models and attention implementations for which this is not known to be "
        "exact read rows one by one; so do compiled models, and losses that know no turns.",
    )
    gain_measure: GainMeasure = _by_credit(
        "gain_measure",
        "Value of a context: the mean log-probability per answer token ('logprob'), or its exponential "
        "('probability').",
    )
    first_gain: bool = _by_credit(
        "first_gain",
        "Whether the first turn has a gain: how much closer it came to the answer than the question alone.",
    )
    last_gain: bool = _by_credit(
        "last_gain",
        "Whether the last turn that a tool answered has a gain: how much closer its result came to the answer.",
    )
    answer_aliases: AnswerAliases = setting(
        "first", "Which of the accepted answers is scored: the 'first', the best ('max') or their average ('mean')."
    )
    probe_template: str = setting(
        "<answer>{answer}</answer>",
        "What the policy would write if it answered immediately; only the tokens of {answer} are "
        "scored. It starts where a turn starts, right after the generation prompt.",
    )
    gain_token_budget: Annotated[int, Interval(1)] = setting(
        16384,
        "Maximum number of tokens (padding included) in one forward pass of the gain pass on one device. A longer "
        "rollout gets its own forward pass. Lower this if the gain pass runs out of memory.",
    )
    eval_gains: bool = setting(
        False,
        "Whether evaluations also compute values and gains, for the records of their rollouts (`a2tgpo gains`). The "
        "cost is the same as in training.",
    )
    record_every: Annotated[int, Interval(0)] = setting(
        0,
        "Interval in steps at which the rollouts of a batch are written to the run's folder `rollouts`, with the "
        "credit of their turns, from the first step on. 0: none are written.",
    )
    record_format: RecordFormat = setting(
        "jsonl",
        "Format of these files: 'jsonl' (one rollout per line) or 'parquet' (smaller, with the same column types in "
        "all files).",
    )
    record_tokens: bool = setting(
        True,
        "Whether tokens are also written and, for each sampled token, its text, log-probability, ratio and whether it "
        "was clipped, which the page of a run uses to colour it. Without tokens, files are smaller.",
    )
    record_megabytes: Annotated[int, Interval(1)] = setting(
        1000,
        "Maximum total size of these files in megabytes, on all ranks together. Recording ends when they are reached.",
    )
    table_turns: Annotated[int, Interval(0)] = setting(
        TABLE_TURNS,
        "Maximum number of turns (one row each) in the table that W&B, Trackio and TensorBoard get if report_to names "
        "them, at most 50 times per run: what was said, called and read, and what the turn gained and was credited "
        "with. Secrets are masked. 0: no table.",
    )
    resample_limit: Annotated[int, Interval(0)] = setting(
        0,
        "Maximum number of times that the prompts of groups that teach nothing (equal rewards, equal gains) are "
        "rolled out again before a batch is trained on, as in DAPO. 0: never.",
    )

    def __post_init__(self):
        preset = self._fill_in_credit()
        super().__post_init__()
        self._check_effect(preset)

    def _check_together(self) -> None:
        super()._check_together()
        if not isinstance(self.probe_template, str) or self.probe_template.count(ANSWER_SLOT) != 1:
            raise ValueError(f"probe_template must contain {ANSWER_SLOT} exactly once; got {self.probe_template!r}.")
        if self.epsilon * (1 + self.clip_adaptation) >= 1:
            raise ValueError(
                f"epsilon * (1 + clip_adaptation) must be below 1, or the widest clip range would reach a ratio of 0; "
                f"got epsilon={self.epsilon}, clip_adaptation={self.clip_adaptation}."
            )
        self._check_loss()
        self._check_noise()

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
        """Check that no setting is set that the method does not read."""
        if self.failure_shaping == 0 and (self.shaping_embedding, self.success_reward) != ("auto", 1.0):
            raise ValueError("shaping_embedding and success_reward have no effect without failure_shaping.")
        if self.record_every == 0:
            for name in self._chosen("record_format", "record_tokens", "record_megabytes"):
                raise ValueError(f"{name} has no effect without record_every.")
        if self.table_turns not in (0, TABLE_TURNS) and not {*TRACKERS} & {*self.report_to}:
            raise ValueError(f"table_turns has no effect unless report_to names one of {', '.join(TRACKERS)}.")
        self._check_gains(preset)
        self._check_states(preset)
        for name in preset.unread(vars(self)):
            neutral = preset.values[name] if name in DEFAULTS else type(self).__dataclass_fields__[name].default
            if getattr(self, name) != neutral:
                unless = " while gain_weight and turn_reward_weight are 0" if name in preset.needs_weight else ""
                raise ValueError(
                    f"{name} has no effect with credit={self.credit!r}{unless}: leave it out. Its value is then "
                    f"{neutral!r}."
                )

    def _check_gains(self, preset: Preset) -> None:
        if self.stopped_count and not (self.uses_gain and (self.gain_normalization, self.gain_groups) == DEPTHS):
            raise ValueError(
                "stopped_count has no effect unless gains are compared by depth: gain_weight or clip_adaptation above "
                "0, gain_normalization='turn_group' and gain_groups='turn'."
            )
        readers = {"first_gain": self.uses_gain, "last_gain": self.uses_gain, "gain_measure": self.computes_gains}
        for name, is_read in readers.items():
            if getattr(self, name) != preset.values[name] and not is_read:
                raise ValueError(
                    f"{name} has no effect with credit={self.credit!r}, which reads no gains unless gain_weight or "
                    "clip_adaptation is above 0. Leave it out."
                )

    def _check_states(self, preset: Preset) -> None:
        if self.gain_groups == "state":
            if self.gain_normalization != "turn_group":
                raise ValueError(
                    f"gain_groups='state' has no effect with gain_normalization={self.gain_normalization!r}: only "
                    "'turn_group' compares groups of turns. Leave one of the two out."
                )
            if not self.uses_gain:
                raise ValueError(
                    f"gain_groups='state' has no effect with credit={self.credit!r}, which compares no gains unless "
                    "gain_weight or clip_adaptation is above 0. credit='gigpo' compares what turns earn by state."
                )
        if self.state_likeness != 1 and not self.reads_states:
            raise ValueError(
                "state_likeness has no effect: states are read by credit='gigpo' and gain_groups='state' only."
            )
        weight = preset.values["state_weight"]
        if self.state_weight != weight and not preset.needs_states:
            raise ValueError(
                f"state_weight has no effect with credit={self.credit!r}: leave it out. Its value is then {weight!r}."
            )

    def _check_loss(self) -> None:
        if self.loss_type in WITHOUT_CLIP_RANGE and self.clip_adaptation > 0:
            raise ValueError(
                f"loss_type={self.loss_type!r} {WITHOUT_CLIP_RANGE[self.loss_type]}, so clip_adaptation has no clip "
                "range to scale. Set clip_adaptation=0."
            )
        if self.loss_type == "cispo" and self.epsilon_high < 1 and self.credit != "grpo":
            raise ValueError(
                f"loss_type='cispo' caps the ratio at epsilon_high itself, and {self.epsilon_high} would scale every "
                "token down. Set epsilon_high to the highest weight that a token may have, such as 5.0."
            )

    def _check_noise(self) -> None:
        if self.neftune_noise_alpha is not None and self.importance_sampling_level != "token":
            raise ValueError(
                "neftune_noise_alpha adds noise to each forward pass, which alone moves the ratio of a "
                f"{self.importance_sampling_level} out of its clip range. Leave it out, or set "
                "importance_sampling_level='token'."
            )

    @property
    def credit_method(self) -> Method:
        """The method that credits the turns."""
        return find_method(self.credit)

    @property
    def credit_switches(self) -> Switches:
        """The settings that the method reads."""
        return Switches.of(vars(self))

    @property
    def credit_settings(self) -> CreditSettings:
        """How turns are credited."""
        return CreditSettings.of(self.credit, self.credit_method, vars(self))

    @property
    def trains_as_grpo(self) -> bool:
        """Whether the loss is that of TRL's GRPO, so that training is the same bit for bit."""
        return not self.knows_turns and self.importance_sampling_level == "token"

    @property
    def knows_turns(self) -> bool:
        """Whether anything in the loss depends on turns. If not, training is TRL's, or differs from it by padding."""
        credits_turns = self.uses_gain or self.turn_reward_weight > 0 or self.reads_states
        return credits_turns or self.importance_sampling_level == "turn"

    @property
    def uses_gain(self) -> bool:
        """Whether anything reads the information gain. If nothing does, it is not computed."""
        return self.credit_switches.uses_gain

    @property
    def computes_gains(self) -> bool:
        """Whether gains are computed at all, in training or in evaluations."""
        return self.uses_gain or self.eval_gains

    @property
    def is_on_policy(self) -> bool:
        """Whether each batch is trained on in one update, so that all ratios are 1 and no clip range has an effect."""
        return self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations) == 0

    @property
    def idle_clip_range(self) -> str | None:
        """Which settings of the clip range have no effect, and what would give them one; None if there are none."""
        values = {"delta": None, **preset_of(self.credit_method).values}
        chosen = [name for name in OF_CLIP_RANGE if getattr(self, name) not in (values[name], 0)]
        if self.loss_type in WITHOUT_CLIP_RANGE:
            chosen = [name for name in chosen if (self.loss_type, name) != ("cispo", "epsilon_high")]
            why = f"loss_type={self.loss_type!r} {WITHOUT_CLIP_RANGE[self.loss_type]}. Leave such settings out."
        elif self.is_on_policy:
            why = (
                "each batch is trained on in one update and all ratios are 1. Set steps_per_generation times "
                "num_iterations above gradient_accumulation_steps."
            )
        else:
            return None
        said = ", ".join(f"{name}={getattr(self, name)}" for name in chosen)
        return f"{said}: no effect, because {why}" if chosen else None

    @property
    def idle_gain_pass(self) -> str | None:
        """Which settings of the gain pass have no effect, and what would give them one; None if there are none.

        They belong to a recipe's task and machine, so they may stay there when another method is tried.
        """
        chosen = self._chosen(*OF_GAIN_PASS)
        if self.computes_gains or not chosen:
            return None
        return (
            f"{', '.join(chosen)}: no effect, because no gains are computed. Set gain_weight or clip_adaptation above "
            "0, or eval_gains."
        )

    @property
    def reads_states(self) -> bool:
        """Whether anything reads the states in which turns began. If nothing does, states are not compared."""
        return preset_of(self.credit_method).reads_states(self.gain_groups)


def _turn_rewards(value: Any) -> dict[str, float]:
    """Turn rewards and their weights, from a mapping or from a YAML file if its path is given."""
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        if not Path(value).is_file():
            raise ValueError(f"turn_rewards: there is no file {value} next to the recipe or in {Path.cwd()}.")
        content = read_yaml(Path(value))
        if "turn_rewards" not in content:
            raise ValueError(f"turn_rewards: {value} must hold the key turn_rewards, with the mapping below it.")
        value = content["turn_rewards"]
    weights = mapping("turn_rewards", value) or {}
    for name, weight in weights.items():
        check_number(f"turn_rewards: {name}", weight, Interval(ends="()"))
    return weights
