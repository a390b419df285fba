"""ToolConfig: the settings of a policy that calls tools, on top of those of `GRPOConfig`."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

from trl import GRPOConfig

from ..fields import Interval, check_fields, documented, setting
from .failures import Policy, complete_policy


@documented(GRPOConfig)
@dataclass
class ToolConfig(GRPOConfig):
    """Settings of [`ToolTrainer`]: everything in `GRPOConfig`, and how rollouts call tools, fail, and go on.

    Evaluations sample and score but have no loss, so the best model is chosen by "reward" unless
    `metric_for_best_model` is set. With several sets, each logs metrics under its name, such as `eval_easy_reward`;
    `metric_for_best_model` is one of them.

    A subclass adds fields, and checks those that are only wrong in combination in `_check_together`.
    """

    # Settings that change neither a rollout nor what is learnt from it.
    BOOKKEEPING: ClassVar[tuple[str, ...]] = (
        *("resume_changed", "tool_concurrency", "max_hung_calls", "on_outage", "outage_patience"),
    )
    # Settings that may differ when a run is resumed.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        *BOOKKEEPING,
        "sampling_batch_size",
        "sampling_token_budget",
        "tool_cache",
        "tool_replay",
    )

    # Fields at which a part of the docstring begins.
    HEADINGS: ClassVar[dict[str, str]] = {
        "tool_settings": "tools and their calls",
        "failure_policy": "failed turns, calls that hang, and tools that are down",
        "sampling_batch_size": "sampling",
        "answer_column": "data and checkpoints",
    }

    tool_settings: dict[str, dict[str, Any]] | str | None = setting(
        None,
        "Settings by tool name: timeout, retries, backoff, concurrency, max_result_tokens, cache, changes_state, "
        "final, process. "
        "They override those of the decorator `a2tgpo_trl.tools.tool` in Python.",
    )
    tool_timeout: Annotated[float | None, Interval(0.0, ends="()")] = setting(
        60.0, "Seconds that a call may take. A tool's own limit wins. None: no limit."
    )
    tool_concurrency: Annotated[int, Interval(1)] = setting(64, "Calls that run concurrently in a process.")
    max_calls_per_turn: Annotated[int | None, Interval(1)] = setting(
        16, "Calls that one turn may make; the rest are not made. None: no limit."
    )
    max_result_tokens: Annotated[int | None, Interval(1)] = setting(
        None, "Tokens of a tool's result that the policy reads; the rest is cut off. None: no limit."
    )
    tool_cache: str | None = setting(
        None,
        "File in which calls and results are kept (JSON lines). A call that is in it is not made again if the tool "
        "has the same name, signature, docstring and `version`. Calls on environments, and calls of tools that change "
        "something (`changes_state`), are always made.",
    )
    tool_replay: bool = setting(False, "Whether a call that is not in `tool_cache` is an error instead of being made.")
    failure_policy: dict[str, str] | str | None = setting(
        None,
        "What to do for each way in which a turn can fail (unparsed_call, unknown_tool, bad_arguments, tool_error, "
        "timeout, result_cut, over_budget, context_full): 'tell' the policy, 'end' the rollout, or 'exclude' it from "
        "its group and the loss. Those not named are 'tell', except context_full: 'end'.",
    )
    max_hung_calls: Annotated[int, Interval(0)] = setting(
        16,
        "Calls that may be past their time limit at the same time. With more, further calls of their tools "
        "wait until some return; if they do not within outage_patience, the run saves a checkpoint and stops.",
    )
    on_outage: Literal["stop", "continue"] = setting(
        "stop",
        "What happens when a tool whose check fails stays down: the run saves a checkpoint and stops "
        "('stop'), or goes on while calls fail ('continue').",
    )
    outage_patience: Annotated[float, Interval(0.0)] = setting(
        300.0,
        "Seconds to wait for a tool that is down, or for calls that hang. Must be less than ddp_timeout, if there are "
        "several processes: they all wait meanwhile.",
    )
    sampling_batch_size: Annotated[int | None, Interval(1)] = setting(
        None,
        "Rollouts that transformers' generation samples together in a process, while the others of the batch "
        "wait: lower it if sampling runs out of memory. None: all of them. With vLLM, which manages this itself, it "
        "must be None.",
    )
    sampling_token_budget: Annotated[int, Interval(1)] = setting(
        65536,
        "Tokens (padding included) whose keys and values a process holds at a time when it streams transformers' "
        "models. When this is full, rollouts wait or are read again later. Lower it if sampling runs out of memory. "
        "With vLLM, leave it out.",
    )
    stream_turns: bool = setting(
        True,
        "Whether a rollout goes on as soon as its tools have answered, instead of waiting for all: with a colocated "
        "vLLM without tensor parallelism, and with transformers' models whose weights are whole on each process "
        "(ZeRO-3 gathers them to sample). The latter then keep what they have read while tools are called. Which "
        "turns are read together then depends on when tools answer, which moves gains by rounding: set false for runs "
        "that are the same to the bit.",
    )
    seeded_rollouts: bool | None = setting(
        None,
        "Whether each rollout has its own seed (made from `seed`, the step and its place in the batch), so that the "
        "same seed gives the same run on any number of processes. None: yes with transformers' generation "
        "(unless full_determinism or use_transformers_continuous_batching is set), no with vLLM, whose sampler would "
        "be slower. One seed for all (`seed` in generation_kwargs) is refused: the rollouts of a prompt would be the "
        "same.",
    )
    answer_column: str = setting(
        "answer",
        "Dataset column with the ground-truth answer: a string, or a list of accepted strings. Rewards and records "
        "get it as `answer`, in place of any column of that name. An environment may give it instead: its class "
        "declares `answer: str | None = None`, and `reset` sets it.",
    )
    resume_changed: bool = setting(
        False, "Whether a run may resume from a checkpoint that was saved with other settings, data or policy."
    )

    def __post_init__(self):
        check_fields(self, base=GRPOConfig)
        self._check_together()
        self._name_best_metric()
        try:
            super().__post_init__()
        except ValueError as error:
            if "bf16/gpu" not in str(error):
                raise
            raise ValueError(
                "bf16, TRL's default, needs an accelerator that supports it, and there is none here. Set bf16: false "
                "(in Python, bf16=False) to train in float32, or fp16: true on an older GPU."
            ) from error
        self._check_seeds()
        if self.use_vllm or self.use_transformers_continuous_batching:
            for name in self._chosen("sampling_batch_size", "sampling_token_budget"):
                raise ValueError(
                    f"{name} has no effect with vLLM or continuous batching, which sample as many rollouts at once as "
                    "fit in memory. Leave it out."
                )

    def _chosen(self, *names: str) -> list[str]:
        """Those of these settings that do not have their default."""
        fields = type(self).__dataclass_fields__
        return [name for name in names if getattr(self, name) != fields[name].default]

    def _check_together(self) -> None:
        self.tool_settings = mapping("tool_settings", self.tool_settings)
        self.failure_policy = mapping("failure_policy", self.failure_policy)
        self.failure_policies  # noqa: B018  # raises for unknown names
        if self.tool_replay and self.tool_cache is None:
            raise ValueError("tool_replay needs a file to replay from: name it with tool_cache.")

    def _name_best_metric(self) -> None:
        """Choose the best model by reward: evaluations have no loss, which the parent would use."""
        if self.metric_for_best_model in ("loss", "eval_loss"):
            raise ValueError(
                f"metric_for_best_model={self.metric_for_best_model!r}: evaluations sample and score, and compute no "
                "loss. Name a metric that they log, such as 'reward' or 'rewards/exact_match/mean'."
            )
        follows = self.load_best_model_at_end or self.lr_scheduler_type == "reduce_lr_on_plateau"
        if follows and self.metric_for_best_model is None:
            setattr(self, "metric_for_best_model", "reward")  # noqa: B010  # the parent's would be the loss

    def _check_seeds(self) -> None:
        if "seed" in (self.generation_kwargs or {}):
            raise ValueError(
                "generation_kwargs: leave out seed. With vLLM, all requests would draw the same numbers, so the "
                "rollouts of a prompt would be identical; transformers ignores it. The field seed determines what a "
                "run draws; seeded_rollouts=True gives each rollout a seed of its own, where the engine supports it."
            )
        if self.seeded_rollouts is None:
            return
        for reason, holds in self._cannot_seed.items():
            if self.seeded_rollouts and holds:
                raise ValueError(f"seeded_rollouts=True does not work with {reason}. Leave it out.")

    @property
    def _cannot_seed(self) -> dict[str, bool]:
        streams = self.stream_turns and self.vllm_mode == "colocate" and self.vllm_tensor_parallel_size == 1
        return {
            "vLLM unless it is colocated, with stream_turns and one GPU per process": self.use_vllm and not streams,
            "use_transformers_continuous_batching, which forms batches of its own": (
                self.use_transformers_continuous_batching
            ),
            "full_determinism, because sums over the vocabulary are not deterministic on GPUs": self.full_determinism,
        }

    @property
    def seeds_rollouts(self) -> bool:
        """Whether each rollout draws from its own seed."""
        if self.seeded_rollouts is not None:
            return self.seeded_rollouts
        return not self.use_vllm and not any(self._cannot_seed.values())

    @property
    def failure_policies(self) -> dict[str, Policy]:
        """The policy for each way in which a turn can fail."""
        return complete_policy(cast(dict[str, str] | None, self.failure_policy))


def mapping(name: str, value: Any) -> dict[str, Any] | None:
    """The mapping that a recipe holds, or the command line as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} must be a mapping, or JSON with double quotes; got {value!r}.") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} must be a mapping of names; got {value!r}.")
    return value
