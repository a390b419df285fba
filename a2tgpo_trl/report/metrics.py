"""the metrics that a run logs: their names, when they are logged, what good and bad curves look like, what to do.

All of them are named here and nowhere else; a test compares the names with the logs of runs that have them all. A
metric without data is left out.

    report_to: [wandb, tensorboard]      # of a recipe; or trackio: pip install 'a2tgpo_trl[wandb,tensorboard,trackio]'

W&B, Trackio and TensorBoard get the metrics, a table with one row per turn, histograms and, as config, all settings,
the recipe, the git commit of the working directory and the versions of packages. Without a network, set
WANDB_MODE=offline; `wandb leet inspect` reads the file. Trackers show training metrics under `train/` and evaluation
metrics under `eval/`. In a log the latter begin with `eval_` (`eval_reward`), followed by the name of the evaluation
set if there are several (`eval_easy_reward`). An evaluation only samples and scores; the gains of its rollouts
(`eval_gains`) are in their records. `metric_for_best_model` can be `eval_rewards/f1/mean` and the like. If you do not
set it and the run loads the best model at the end, or its learning rate follows a plateau, it is `reward`. Metrics
that a reward logs itself keep the names that it gives them.

Names may contain placeholders:

    {turn}           turn_1 (the first turn) to turn_8; later turns count in the metrics over all turns
    {status}         how a turn or a call ended (`a2tgpo help failures`)
    {tool}, {reward}, {turn_reward}      the name of each one in the run
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from .alarms import ALARMS


TURN_TABLE = "rollouts/turns"
GAIN_HISTOGRAM = "gain/{turn}/histogram"

WIDTH = 119
STATUSES = (
    *("ok", "result_cut", "bad_arguments", "unknown_tool", "unparsed_call", "tool_error", "timeout"),
    *("over_budget", "context_full"),
)
PLACES = {"turn": "turn_[1-8]", "status": "|".join(STATUSES), "method": ".+"}  # others match anything without a slash


@dataclass(frozen=True)
class Metric:
    """Metrics that are read together. `evaluated`: evaluations log them too, with the prefix `eval_`."""

    names: tuple[str, ...]
    what: str
    good: str = ""
    bad: str = ""
    do: str = ""
    when: str = ""
    evaluated: bool = False


@dataclass(frozen=True)
class Group:
    title: str
    metrics: tuple[Metric, ...]


LEARNING = Group(
    "Does it learn?",
    (
        Metric(
            ("reward", "rewards/{reward}/mean"),
            "mean over rollouts of the weighted sum of rewards; mean of each reward by itself, also with weight 0",
            good="rises, with noise from batch to batch, and so does each of its parts",
            bad="flat from the start; or one part rises (format, length) while the one that matters does not",
            do="if flat: groups/teach_nothing says whether there is anything to learn from. If one part rises alone: "
            "read rollouts (rollouts/turns, a2tgpo show), and give it less weight (reward_weights).",
            evaluated=True,
        ),
        Metric(
            ("groups/teach_nothing",),
            "share of groups with equal rewards and equal gains, in the batch that is trained on",
            good="well below 1; it rises at the end, as questions are solved",
            bad="near 1 from the start: all rollouts of a prompt fail alike, or pass alike",
            do="use easier or harder questions, more rollouts per prompt (num_generations), a higher temperature "
            "or resample_limit.",
            when="groups of two rollouts or more",
        ),
        Metric(
            ("groups/resampled", "groups/reward"),
            "groups that were rolled out again; mean reward of the batch that is trained on (reward covers all "
            "rollouts that were made for it)",
            good="few, and fewer as training goes on",
            bad="most of the batch, step after step: you pay for sampling several times over",
            do="as for groups/teach_nothing.",
            when="resample_limit",
        ),
    ),
)

TURNS = Group(
    "Turns and calls",
    (
        Metric(
            ("turns/mean", "turns/max"),
            "turns per rollout, the answer turn included: mean and maximum",
            good="settles at what the questions need",
            bad="falls to 1: nothing is looked up any more; or climbs to max_tool_calling_iterations",
            do="if it falls: see alarms/calls. If it climbs: does the reward make calling safer than answering? Set a "
            "turn reward for calls, or allow fewer.",
            evaluated=True,
        ),
        Metric(
            ("turns/{status}",),
            "share of turns that ended with this status",
            good="turns/ok near 1",
            bad="unparsed_call, bad_arguments, unknown_tool: the policy does not know the form of a call. tool_error, "
            "timeout: the tool fails. over_budget, context_full: limits",
            do="a2tgpo check shows what the policy reads about the tools; failure_policy sets what follows. "
            "context_full: raise max_completion_length or lower max_result_tokens. result_cut: raise "
            "max_result_tokens. over_budget: raise max_tool_calling_iterations or max_calls_per_turn.",
            when="tools or environments",
            evaluated=True,
        ),
        Metric(
            ("turns/survivors_{turn}", "turns/singleton_cells"),
            "rollouts of a group with a gain at that depth; share of cells with only one rollout, which has nothing "
            "to be compared with",
            good="survivors near num_generations in the first turns, singleton cells below a third",
            bad="most late turns are alone in their cell, so they get no credit of their own",
            do="use more rollouts per prompt; gain_normalization: pooled, or stopped_count: true.",
            when="gains",
        ),
        Metric(
            ("tools/{tool}/calls", "tools/{tool}/{status}"),
            "calls of the tool per rollout; share of them that ended with this status",
            good="calls when the tool is useful, ok near 1",
            bad="no calls of a tool that is needed; tool_error or timeout above a few hundredths",
            do="call the tool by hand with arguments from rollouts/turns; time limits and retries: a2tgpo help tools.",
            when="tools; only ok, result_cut, bad_arguments, tool_error and timeout are logged by tool",
            evaluated=True,
        ),
        Metric(
            ("tools/seconds", "tools/retries", "tools/hung"),
            "seconds per call; retries; calls that never returned, since the run began",
            good="seconds flat, retries and hung at 0",
            bad="seconds rise with the load; hung grows: each of these calls costs a thread",
            do="set tool_concurrency to what the tool can handle, put a time limit inside the tool, or give it a "
            "process (a2tgpo help tools).",
            when="tools or environments",
            evaluated=True,
        ),
        Metric(
            ("rollouts/excluded", "rollouts/failed_rewards"),
            "share of rollouts that are left out of the loss; share of environment rewards that failed",
            good="0, or near it",
            bad="above a few hundredths: the rollouts left out may be those of hard questions",
            do="see which turns/{status} it is; change failure_policy.",
            when="tools or environments",
            evaluated=True,
        ),
        Metric(
            ("rollouts/sampling_seconds", "rollouts/tool_seconds"),
            "seconds per batch that the slowest process spent sampling, and waiting for tools",
            good="waiting for tools takes a small part of the time",
            bad="tool_seconds on the order of sampling_seconds",
            do="adjust tool_concurrency, use a cache (a2tgpo help tools) or stream_turns.",
            when="tools or environments",
            evaluated=True,
        ),
    ),
)

GAINS = Group(
    "Information gain",
    (
        Metric(
            ("gain/mean", "gain/{turn}/mean"),
            "mean gain of turns: the value after a turn minus the value before it",
            good="above 0, and highest in the turns that find the answer",
            bad="near 0 at every depth, or falling below 0: results do not make the answer more probable",
            do="does probe_template have the form in which the policy answers? Do results contain the answer (a2tgpo "
            "answerable)? a2tgpo gains compares rollouts that found it with the others.",
            when="gains",
        ),
        Metric(
            ("gain/std", "gain/{turn}/std", "gain/share_positive", "gain/{turn}/share_positive"),
            "standard deviation of gains; share of gains above 0",
            good="std well above gain/floor; share_positive above a half",
            bad="std near gain/floor: gains do not tell turns apart",
            do="see alarms/gains.",
            when="gains",
        ),
        Metric(
            ("gain/floor", "gain/cells_below_floor"),
            "how far rounding may move a gain, in nats (1e-4 in float32; measured in 16 bits and TF32); share "
            "of cells with two rollouts or more in which no gain is further than that from the mean",
            good="cells_below_floor well below 1; it rises at the end, as rollouts become alike",
            bad="near 1 from the start: gains credit no turn",
            do="see alarms/gains.",
            when="gains",
        ),
        Metric(
            ("value/before", "value/after", "value/after_{turn}"),
            "how well the policy predicts the answer: from the prompt alone, at the end, and after each turn "
            "(log-probability of a token of the probe, or its probability with gain_measure: probability)",
            good="after is above before, and rises from turn to turn",
            bad="before is as high as after: the policy knows the answer without a call. Both fall: training has "
            "moved it away from the form of the probe",
            do="ask questions that it cannot know; give probe and reward the same form; eval_gains shows the gains of "
            "held-out rollouts.",
            when="gains",
        ),
        Metric(
            ("gain/seconds", "gain/forwards", "gain/failed_probes"),
            "cost of the gain pass per batch: seconds of the slowest process, and forward passes; values that were "
            "not finite, or whose answer did not fit in the model's context",
            good="a small part of step_time; failed_probes 0",
            bad="seconds on the order of sampling; failed_probes above 0",
            do="set gain_token_budget to what memory allows; stream_turns computes values while sampling. Failed "
            "probes: in its precision the policy gives the answer no probability (try bf16: false), or rollouts leave "
            "no room for it (lower max_completion_length).",
            when="gains; in evaluations with eval_gains",
            evaluated=True,
        ),
    ),
)

CREDIT = Group(
    "Credit of turns",
    (
        Metric(
            ("turn_rewards/{turn_reward}/mean", "turn_rewards/{turn_reward}/{turn}"),
            "mean of a turn reward before its weight: over all turns, and by turn",
            good="punished turns become rare and rewarded ones common, and reward rises too",
            bad="it improves while reward does not: the policy learns the turn reward instead",
            do="set a smaller weight in turn_rewards, or a smaller turn_reward_weight.",
            when="turn rewards",
            evaluated=True,
        ),
        Metric(
            ("clip_scale/mean", "clip_scale/{turn}"),
            "how far gains widen or narrow clip ranges",
            good="near 1 on average, and different by turn",
            bad="1 everywhere though clip_adaptation is not 0: no gain differs by more than rounding",
            do="see alarms/gains.",
            when="gains",
        ),
        Metric(
            ("states/alone", "states/turns", "states/seconds"),
            "share of turns alone in their state; average number of turns of a prompt that begin in a state; "
            "seconds of the slowest process",
            good="alone below a half, several turns per state",
            bad="alone near 1: nothing is compared by state",
            do="use a lower state_likeness (0.9) or more rollouts per prompt.",
            when="credit: gigpo, or gain_groups: state",
        ),
        Metric(
            ("shaping/passed", "shaping/share", "shaping/mean", "shaping/seconds"),
            "share of rollouts that passed; share whose outcome was shaped; by how much on average; seconds of the "
            "slowest process",
            good="passed rises, and share falls as fewer rollouts fail",
            bad="passed stays 0: nothing is shaped",
            do="does the weighted sum of the rewards reach success_reward?",
            when="failure_shaping",
        ),
    ),
)

RATIOS = Group(
    "Ratios and clipping",
    (
        Metric(
            ("clip_fraction/mean", "clip_fraction/{turn}"),
            "share of a turn's tokens that are clipped",
            good="0 in the first update of a batch, a few thousandths to a few hundredths overall; more with one "
            "ratio per turn than with one per token, because a turn is clipped as a whole",
            bad="above a few hundredths: the clip range is narrow for the size of the updates. The policy learns, but "
            "a wider range may be faster",
            do="see alarms/clipping.",
            when="losses that clip",
        ),
        Metric(
            ("turn_ratio/mean", "turn_ratio/{turn}"),
            "importance ratio of a turn: current policy over policy at sampling",
            good="within the clip range around 1",
            bad="drifts from 1 in the later updates of a batch",
            do="use a lower learning rate or fewer updates per batch (num_iterations, steps_per_generation).",
        ),
        Metric(
            (
                *("sampler_gap/mean", "sampler_gap/absolute", "sampler_gap/{turn}", "sampler_gap/absolute_{turn}"),
                *("sampler_gap/growth", "sampler_gap/alarm"),
            ),
            "mean over tokens of the sampler's log-probability minus the trainer's; growth: the gap after the first "
            "turn over the gap in it; alarm: 1 if growth is above 2",
            good="absolute about 0.01 in 16 bits, at every depth",
            bad="higher if weights were not pushed; growing with depth if the two read long contexts differently",
            do="use the same precision, rotary scaling and window for both; see a2tgpo help vllm.",
            when="vLLM with vllm_importance_sampling_correction; without it, or with a rollout function that returns "
            "logprobs, only if a batch serves several updates",
        ),
    ),
)

OF_ALARMS = Group(
    "Alarms and a hint: 1 if one is on, else 0. Each is reported once, with what to do",
    tuple(
        Metric((alarm.name,), f"1 if {alarm.when}", do=alarm.do, when=f"{alarm.reads}; 0 until five lines have it")
        for alarm in ALARMS
    ),
)

BESIDE = Group(
    "Tables and histograms (W&B, Trackio and TensorBoard)",
    (
        Metric(
            (TURN_TABLE,),
            "rollouts of a batch, one row per turn: what was said, called and read, values, gain, z, advantage and "
            "clip scale. At most table_turns rows, 50 times per run; as text in TensorBoard",
            when="table_turns",
        ),
        Metric(
            (GAIN_HISTOGRAM,),
            "gains of the turns at a depth, from the last batch before the line of the log",
            good="one peak at 0 and another above it: turns that found nothing, and turns that found something",
            bad="one narrow peak",
            do="see alarms/gains.",
            when="gains",
        ),
        Metric(
            ("completions",),
            "TRL's table of whole rollouts, with turn_advantages (the advantage of each turn) and their mean (W&B and "
            "Trackio)",
            when="log_completions",
        ),
    ),
)


def _short(*names: str, what: str, when: str = "", evaluated: bool = False) -> Metric:
    return Metric(names, what, when=when, evaluated=evaluated)


OF_TRL = Group(
    "TRL's own (see also its documentation of GRPOTrainer)",
    (
        _short("reward_std", "rewards/{reward}/std", what="spread of rewards over a batch", evaluated=True),
        _short("frac_reward_zero_std", what="share of groups with equal rewards", evaluated=True),
        _short("num_tokens", what="tokens read and sampled since the run began", evaluated=True),
        _short(
            *("completions/mean_length", "completions/min_length", "completions/max_length"),
            *("completions/mean_terminated_length", "completions/min_terminated_length"),
            "completions/max_terminated_length",
            what="tokens per rollout, tool results included; the same for rollouts that the policy ended itself",
            evaluated=True,
        ),
        _short(
            "completions/clipped_ratio",
            what="share of rollouts that a limit cut: above a few hundredths, raise max_completion_length",
            evaluated=True,
        ),
        _short(
            *("tools/call_frequency", "tools/failure_frequency"),
            what="calls per rollout; share of them that failed",
            when="tools",
            evaluated=True,
        ),
        _short("entropy", what="of the next token: falls slowly in a good run, suddenly in one that collapses"),
        _short("kl", what="distance from the reference policy", when="beta"),
        _short(
            "policy_loss", "entropy_coef", what="loss without entropy bonus; weight of the bonus", when="entropy_coef"
        ),
        _short("aux_loss", what="balance of experts", when="mixtures of experts with router_aux_loss_coef"),
        _short(
            *("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"),
            *("clip_ratio/low_min", "clip_ratio/high_max"),
            what="share of tokens that are clipped: as clip_fraction, but by token instead of by turn",
            when="losses that clip",
        ),
        _short("cispo_clip_ratio", what="share of tokens at the cap", when="loss_type: cispo"),
        _short("vespo/phi_seq_mean", what="mean weight of a rollout", when="loss_type: vespo"),
        _short(
            *("sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"),
            *("sampling/importance_sampling_ratio/min", "sampling/importance_sampling_ratio/mean"),
            "sampling/importance_sampling_ratio/max",
            what="gap between sampler and trainer, and the weights that correct it",
            when="vLLM with vllm_importance_sampling_correction",
        ),
        _short("step_time", what="seconds per step"),
        _short("profiling/Time taken: {method}", what="seconds of a method of the trainer", when="W&B and Trackio"),
    ),
)

OF_TRANSFORMERS = Group(
    "Those of every transformers trainer",
    (
        _short("loss", what="of the step; does not measure what is learnt"),
        _short("grad_norm", what="before clipping to max_grad_norm; unstable runs have lasting peaks"),
        _short("learning_rate", "epoch", "global_step", what="where the run is"),
        _short("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", what="cost of an evaluation"),
        _short(
            *("train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"),
            what="logged at the end, for the whole run; W&B has them in its summary",
        ),
    ),
)

GROUPS = (LEARNING, TURNS, GAINS, CREDIT, RATIOS, OF_ALARMS, BESIDE, OF_TRL, OF_TRANSFORMERS)


# ---- by name


def names() -> Iterator[str]:
    """Yield all names, including those of evaluations, with placeholders.

    Example: "reward", "eval_reward", ..., "gain/{turn}/mean"
    """
    for metric in (metric for group in GROUPS for metric in group.metrics):
        for name in metric.names:
            yield name
            if metric.evaluated:
                yield f"eval_{name}"


def documented_as(name: str) -> str | None:
    """Return the name under which a logged metric is listed here; None if it is not listed.

    Example: "gain/turn_2/mean" -> "gain/{turn}/mean"; "eval_reward" -> itself; "gian/mean" -> None
    """
    plain, others = _patterns()
    return name if name in plain else next((other for other, pattern in others if pattern.fullmatch(name)), None)


@cache
def _patterns() -> tuple[frozenset[str], tuple[tuple[str, re.Pattern[str]], ...]]:
    known = list(names())
    return (
        frozenset(name for name in known if "{" not in name),
        tuple((name, re.compile(_pattern(name))) for name in known if "{" in name),
    )


def _pattern(name: str) -> str:
    """Example: "turns/survivors_{turn}" -> "turns/survivors_(?:turn_[1-8])" """
    parts = re.split(r"\{(\w+)\}", name)  # text and placeholders alternate
    return "".join(f"(?:{PLACES.get(part, '[^/]+')})" if i % 2 else re.escape(part) for i, part in enumerate(parts))


# ---- for readers


def table() -> str:
    """Return all metrics, as `a2tgpo help metrics` shows them."""
    return "\n\n".join("\n".join([f"{group.title}:", *_lines(group)]) for group in GROUPS)


def _lines(group: Group) -> Iterator[str]:
    for metric in group.metrics:
        yield ""
        yield from _wrapped(", ".join(metric.names), 4)
        parts = {"": metric.what, "logged with: ": metric.when, "good: ": metric.good, "bad: ": metric.bad}
        for label, text in {**parts, "do: ": metric.do}.items():
            if text:
                yield from _wrapped(f"{label}{text}", 8)


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2), break_on_hyphens=False
    )
