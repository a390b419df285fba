"""a trainer's prompts -> rollouts with all their turns -> what the trainer's parent asks for, metrics and records.

This replaces the parent's tool loop, which calls one tool after the other without a time limit, and loops on each
rank's own state, so that ranks with unequal numbers of turns hang or mix rollouts up.
"""

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import psutil
from accelerate.logging import get_logger
from transformers import PreTrainedTokenizerBase

from ..errors import RunStopped
from ..ranks import Ranks
from ..tools.cache import CallCache
from ..tools.calls import Limits
from ..tools.control import ControlText
from ..tools.runner import ToolRunner
from ..tools.settings import check_tool_settings
from .answers import forget_answer
from .engines import ContextLimit, Ends, Engine
from .environments import Environments
from .open_files import WARN, OpenFiles
from .parsing import TurnParser
from .rollout import Rollout, Rules, Timing, roll_out
from .settings import ToolConfig
from .tally import Tally


logger = get_logger(__name__)

# Training batches without a single call after which the user is warned.
SILENT_BATCHES = 5
# If at least this many calls of a tool in a batch all fail, it may be down, and the loss would not show it.
MANY_CALLS = 4
# Batches in a row in which every environment fails, after which the run stops.
DEAD_BATCHES = 2


def make_runner(args: ToolConfig) -> ToolRunner:
    """The runner that makes the calls of a trainer with these settings."""
    cache = None if args.tool_cache is None else CallCache(args.tool_cache, args.tool_replay, args.process_index)
    limits = Limits(
        args.tool_concurrency,
        args.tool_timeout,
        args.max_hung_calls,
        args.outage_patience,
        stop_when_down=args.on_outage == "stop",
    )
    return ToolRunner(limits, _words(args), cache)


def _words(args: ToolConfig) -> dict[str, dict[str, Any]]:
    return cast(dict[str, dict[str, Any]], args.tool_settings or {})


@dataclass(frozen=True)
class Start:
    """What a rollout begins with: tools by name as they are called, and as the policy sees them."""

    prompt_ids: list[int]
    tools: Mapping[str, Callable]
    visible_tools: Sequence[Callable]
    environment: Any = None


class ToolLoop:
    """What a trainer needs to let its policy call tools. All ranks call it together."""

    def __init__(
        self,
        args: ToolConfig,
        ranks: Ranks,
        environments: Environments,
        tools: Sequence[Callable],
        tokenizer: PreTrainedTokenizerBase,
        control: ControlText | None,
        *,
        has_environments: bool,
        context_limit: Callable[[], ContextLimit],
    ):
        """`control`: None if there are no tools, since an environment need not have any."""
        self._args, self._ranks, self._tools, self._tokenizer = args, ranks, tools, tokenizer
        self.environments, self.runner = environments, environments.runner
        self._has_environments, self._ask_context_limit = has_environments, context_limit
        if args.tool_replay and has_environments:
            raise ValueError(
                "tool_replay does not work with environments: a replayed call would not change their state, which "
                "rewards may read. Replay only tools that are functions."
            )
        check_tool_settings(tools, _words(args))
        self.runner.prepare(tools)
        self._asked = False
        self._silent = 0
        self._files = OpenFiles(psutil.Process().num_fds())
        self._context_limit: ContextLimit | None = None
        self._dead_batches = {"reset": 0, "get_reward": 0}
        self.rollouts: list[Rollout] = []
        self._timing = Timing()
        self._parser = TurnParser(tokenizer)
        self._control = control

    # ---- a batch

    def begin_batch(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Called before the environments of a batch, if there are any, are reset with these rows."""
        self.environments.begin_batch(rows)
        for environment in self.environments.batch():  # of the previous batch
            forget_answer(environment)
        self.runner.begin_batch()
        self.rollouts, self._timing = [], Timing()
        if not self._asked:
            self._ask_tools()

    def _ask_tools(self) -> None:
        """Check once that the tools are up; all ranks raise together, so that none is left waiting for the others."""
        try:
            self.runner.check(self._tools)
            error = None
        except RuntimeError as found:
            error = str(found)
        error = self._ranks.first_text(error)
        if error is not None:
            raise RunStopped(error)
        self._asked = True

    def run(self, starts: Sequence[Start], engine: Engine, ends: Ends, training: bool) -> list[Rollout]:
        """Roll out all prompts to their end. An evaluation excludes no rollout: its scores are of all questions."""
        rules = self._rules(ends, training)
        self.rollouts = [
            Rollout(start.prompt_ids, rules, self.runner, start.tools, start.visible_tools, start.environment)
            for start in starts
        ]
        for rollout in self.rollouts:
            if rollout.environment is not None and self.environments.failed(rollout.environment) is not None:
                rollout.skip()
        self._timing = roll_out(self.rollouts, engine, self.runner)
        self._warn_of_long_prompts(starts, rules)
        return self.rollouts

    def _warn_of_long_prompts(self, starts: Sequence[Start], rules: Rules) -> None:
        pairs = zip(starts, self.rollouts, strict=True)
        long = [len(start.prompt_ids) for start, one in pairs if one.ended == "context_full" and not one.turns]
        if long:
            logger.warning(
                f"{len(long)} rollouts of a batch could not begin (context_full): their longest prompt has "
                f"{max(long)} tokens, and only prompts of up to {rules.max_context - rules.least_room} leave room "
                "for a turn. Remove rows with longer prompts, or return less from `reset`."
            )

    def _rules(self, ends: Ends, training: bool) -> Rules:
        args = self._args
        assert self._control is not None
        if self._context_limit is None:
            self._context_limit = self._ask_context_limit()
        policy = args.failure_policies
        if not training:
            policy = {status: "end" if action == "exclude" else action for status, action in policy.items()}
        return Rules(
            self._tokenizer,
            self._parser,
            self._control,
            policy,
            max_tokens=args.max_completion_length,
            max_context=self._context_limit.tokens,
            least_room=self._context_limit.turn,
            end_ids=ends.ids,
            stop_ids=ends.stops,
            stop_texts=ends.texts,
            max_turns=args.max_tool_calling_iterations,
            max_calls=args.max_calls_per_turn,
            max_result_tokens=args.max_result_tokens,
        )

    def end_batch(self, pools: Mapping[Any, list]) -> str | None:
        """After the rewards, release what is stuck or held; return why the run should stop, if any rank says so.

        `pools`: environments that are kept for further batches.
        """
        self.environments.release(self.environments.batch())
        self.environments.drop_unusable(pools)
        nothing_works = self._nothing_works() if self._has_environments else None
        return self._ranks.first_text(self.runner.trouble or nothing_works or self._too_many_files())

    def _nothing_works(self) -> str | None:
        """Return why to stop if all environments of all ranks failed twice in a row, by a mistake or an outage."""
        found = self.environments
        counts = {
            "reset": (found.resets, found.reset_errors),
            "get_reward": (found.rewards, found.reward_errors),
        }
        for method, (number, errors) in counts.items():
            of_ranks = self._ranks.gather_lists([(number, len(errors), errors[:1])])
            asked, failed = (sum(of_rank[i] for (of_rank,) in of_ranks) for i in (0, 1))
            self._dead_batches[method] = self._dead_batches[method] + 1 if asked and asked == failed else 0
            if failed == 0:
                continue
            first = next(error for ((_, _, some),) in of_ranks for error in some)
            which = f"all {asked}" if failed == asked else f"{failed} of {asked}"
            why = f"{method} failed for {which} environments of a batch, the first with: {first}."
            if self._dead_batches[method] >= DEAD_BATCHES and self._args.on_outage == "stop":
                return why
            logger.warning(why)
        return None

    def _too_many_files(self) -> str | None:
        """Warn of tools that never close files or sockets; return why to stop while a checkpoint can be opened."""
        files, was_full = self._files, self._files.is_full
        files.see(psutil.Process().num_fds(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        if files.batches_left < WARN:
            called = {call.name for rollout in self.rollouts for turn in rollout.turns for call in turn.calls}
            why = (
                f"{files}: {', '.join(sorted(called)) or 'the environments'} may leave some open. Close them, run "
                "the tool in a process of its own (process=True), or raise the limit (ulimit -n)."
            )
            if files.batches_left < 1:
                return why
            logger.warning(f"{why} At this rate, the run would have to stop in {files.batches_left:.0f} batches.")
        elif files.is_full and not was_full:
            logger.warning(f"{files}. If it needs more, raise the limit (ulimit -n).")
        return None

    def unscored(self, number: int) -> list[bool]:
        """Which of `number` rollouts get no reward at all: those left out, and those whose environment has failed.

        If only the environment's reward were missing, a rollout would look worse than its group.
        """
        owners = self.environments.batch() or [None] * number
        left_out = [rollout.excluded for rollout in self.rollouts] or [False] * number
        return [out or self.environments.has_failed(owner) for out, owner in zip(left_out, owners, strict=True)]

    # ---- metrics and warnings

    def metrics(self, training: bool) -> dict[str, float]:
        """Scalars of the batch over all ranks."""
        judges = self.environments
        mine = Tally.of(self.rollouts, self.runner.hung, judges.rewards, len(judges.reward_errors))
        tally = sum((of_rank for (of_rank,) in self._ranks.gather_lists([mine])), Tally())
        sampling, waiting = self._ranks.max_each([self._timing.sampling, self._timing.waiting])
        if self._tools:
            self._warn(tally, training)
        names = dict.fromkeys(tool.__name__ for tool in self._tools)
        return {
            **tally.metrics(list(names)),
            "rollouts/sampling_seconds": sampling,
            "rollouts/tool_seconds": waiting,
        }

    def _warn(self, tally: Tally, training: bool) -> None:
        for name in tally.dead_tools(MANY_CALLS):
            logger.warning(
                f"All calls to the tool {name} in this batch failed, the last with: {self._result_of(name)}"
            )
        if not training:
            return
        self._silent = 0 if tally.made else self._silent + 1
        if self._silent == SILENT_BATCHES:
            logger.warning(
                f"The policy called no tool in {SILENT_BATCHES} batches, so it is being trained on single turns. "
                "Does its prompt ask for tool calls, and does the policy know their format? Run `a2tgpo check` to "
                "find out."
            )

    def _result_of(self, name: str) -> str:
        calls = [call for rollout in self.rollouts for turn in rollout.turns for call in turn.calls]
        return next((call.result for call in reversed(calls) if call.name == name), "(in another process)")
