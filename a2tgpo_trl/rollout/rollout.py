"""prompts -> turns sampled by the engine, their calls made by the runner -> finished rollouts, one record a turn.

              a call                  results
    SAMPLING --------> CALLING ----------------> SAMPLING
        |                 |
        | an answer,      | a final tool, no room,
        | a limit,        | a policy that ends it
        | no room         |
        v                 v
       DONE              DONE

A rollout knows its own tokens and nothing about batches; `roll_out` connects rollouts, engine and tools. Tokens are
never rewritten: what the policy sampled stays unchanged, and the tokens of the results are appended. If `stop` or
`stop_token_ids` (`generation_kwargs`) stopped a turn, the token that ends it comes with the results.
"""

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..tools.arguments import problem_with
from ..tools.calls import Outcome, ToolCall
from ..tools.control import ControlText
from ..tools.runner import ToolRunner
from .engines import Engine, LogProbs, Sample
from .failures import Policy, Status, gravest
from .parsing import TurnParser


# The most characters of a token. Text with more than this many per allowed token is cut before it is tokenised.
LONGEST_TOKEN = 64
NO_CALLS_LEFT = "Error: not called, since no more calls are allowed. Answer now."
UNREADABLE = "Error: the call could not be read. Write the name and the arguments of one tool in the format of calls."


class State(Enum):
    SAMPLING = "sampling"
    CALLING = "calling"
    DONE = "done"


@dataclass
class Call:
    """A call of a turn, and what came of it. `result` is what the policy read, or would have read."""

    name: str
    arguments: Any
    status: Status = "ok"
    result: str = ""
    seconds: float = 0.0
    attempts: int = 0
    made: bool = False  # whether it reached its tool
    changes_state: bool = False  # whether its tool does more than look things up


@dataclass
class Turn:
    """What happened between two generations. `tokens_in` counts results with the template's text around them."""

    status: Status = "ok"
    calls: list[Call] = field(default_factory=list)
    tokens_out: int = 0
    tokens_in: int = 0
    seconds: float = 0.0  # of the tools, from the first call to the last result
    cut: bool = False  # whether the policy's text or a tool's was cut at a limit
    reward: float | None = None  # from the environment, for this turn


@dataclass(frozen=True)
class Rules:
    """What all rollouts of a run have in common."""

    tokenizer: PreTrainedTokenizerBase
    parser: TurnParser
    control: ControlText
    policy: Mapping[str, Policy]
    max_tokens: int  # of a rollout without its prompt
    max_context: int  # of the model, the prompt included
    least_room: int = 1  # tokens of it that must be free to request a turn
    end_ids: Sequence[int] = ()  # tokens that end a turn
    stop_ids: Sequence[int] = ()  # those of them that stop a turn before the policy has ended it
    stop_texts: Sequence[str] = ()  # texts that also end a turn
    max_turns: int | None = None
    max_calls: int | None = None
    max_result_tokens: int | None = None


class Rollout:
    """One prompt on its way to an answer."""

    def __init__(
        self,
        prompt_ids: list[int],
        rules: Rules,
        runner: ToolRunner,
        tools: Mapping[str, Callable],
        visible_tools: Sequence[Callable],
        environment: Any = None,
    ):
        """`tools`: what calls can name. `visible_tools`: those whose schemas are in the prompt."""
        self.prompt_ids, self.rules, self.runner = prompt_ids, rules, runner
        self.tools, self.visible_tools, self.environment = tools, visible_tools, environment
        self.state = State.SAMPLING
        self.completion_ids: list[int] = []
        self.mask: list[int] = []  # 1 for tokens that the policy sampled
        self.logprobs: LogProbs = []
        self.messages: list[dict[str, Any]] = []
        self.turns: list[Turn] = []
        self.ended: str | None = None  # "answer", "final", "reset", or the status that ended it
        self.excluded = False
        self._may_call = True

    @property
    def context(self) -> list[int]:
        return self.prompt_ids + self.completion_ids

    @property
    def room(self) -> int:
        """Tokens that the rollout may still take."""
        return min(self.rules.max_tokens - len(self.completion_ids), self.rules.max_context - len(self.context))

    @property
    def room_for_results(self) -> int:
        """Tokens that results may take and still leave room for the next turn; negative if there is no room now."""
        left_of_context = self.rules.max_context - self.rules.least_room - len(self.context)
        return min(self.rules.max_tokens - 1 - len(self.completion_ids), left_of_context)

    # ---- rollouts that cannot begin

    def skip(self) -> None:
        """End the rollout without a turn, because its environment could not be reset."""
        self._leave_empty()
        self._end("reset", exclude=True)

    def begin(self) -> None:
        """Called before the first turn is requested; ends the rollout if its prompt is too long for one."""
        if self.state is State.SAMPLING and self.room_for_results < 0:
            self._leave_empty()
            self._end("context_full", exclude=self._policy("context_full") == "exclude")

    def _leave_empty(self) -> None:
        """Make the completion one token that is not trained on.

        Loss and values still read the rollout, so only the last token of a prompt that is too long is kept.
        """
        if self.room_for_results < 0:
            self.prompt_ids = self.prompt_ids[-1:]
        self.completion_ids, self.mask, self.logprobs = [self.rules.end_ids[0]], [0], [None]
        self.messages = [{"role": "assistant", "content": ""}]

    # ---- sampling -> calling | done

    def receive(self, sample: Sample) -> None:
        """Take a turn of the policy: either an answer, or calls to make."""
        assert self.state is State.SAMPLING
        room = self.room
        ids, prefix = sample.ids[:room] or list(self.rules.end_ids[:1]), self.context  # no token: an empty turn
        turn = Turn(tokens_out=len(ids), cut=not self._ends(ids))
        self.turns.append(turn)
        self.completion_ids += ids
        self.mask += [1] * len(ids)
        self.logprobs += (sample.logprobs or [None] * len(ids))[:room]
        parsed = self.rules.parser.parse(ids, prefix, self.visible_tools)
        self.messages.append(parsed.message)
        if turn.cut:
            turn.status = "over_budget"
            self._end(turn.status, exclude=self._policy(turn.status) == "exclude")
            return
        turn.calls = [self._checked(number, call) for number, call in enumerate(parsed.calls)]
        turn.calls += [self._unreadable(parsed.message) for _ in range(parsed.unread)]
        if not turn.calls:
            self._end("answer")
            return
        self._forbid_further_calls(turn)
        turn.status = gravest(call.status for call in turn.calls)
        if not self._ended_by(turn):
            self.state = State.CALLING
            if self._has_turn_rewards:
                # The reward of the turn before must not count for this one.
                self.environment.turn_reward = type(self.environment).turn_reward

    def _ends(self, ids: list[int]) -> bool:
        """Whether the policy ended the turn; if not, a limit of the rollout, the model or the engine did."""
        if ids[-1] in self.rules.end_ids:
            return True
        text = self.rules.tokenizer.decode(ids, skip_special_tokens=False) if self.rules.stop_texts else ""
        return any(stop in text for stop in self.rules.stop_texts)

    def _checked(self, number: int, parsed: Mapping[str, Any]) -> Call:
        call = Call(parsed["name"], parsed["arguments"])
        tool = self.tools.get(call.name)
        if self.rules.max_calls is not None and number >= self.rules.max_calls:
            call.status = "over_budget"
            call.result = f"Error: not called, since a turn may make {self.rules.max_calls} calls at most."
        elif tool is None:
            call.status = "unknown_tool"
            call.result = f"Error: there is no tool {call.name[:100]!r}. There are: {', '.join(self.tools)}."
        elif problem := problem_with(tool, call.arguments):
            call.status, call.result = "bad_arguments", f"Error: {call.name} was not called: {problem}."
        else:
            call.changes_state = self.runner.settings(tool).changes_state
        return call

    def _unreadable(self, message: Mapping[str, Any]) -> Call:
        """A call that cannot be read, under the name of the tool that it seems to mean.

        Some templates write the name beside the result.
        """
        text = message.get("content") or ""
        name = next((name for name in self.tools if name in text), next(iter(self.tools), "unknown"))
        return Call(name, None, "unparsed_call", UNREADABLE)

    def _forbid_further_calls(self, turn: Turn) -> None:
        if self.rules.max_turns is None or len(self.turns) <= self.rules.max_turns:
            return
        for call in turn.calls:
            call.status, call.result = "over_budget", NO_CALLS_LEFT
        if not self._may_call or self._policy("over_budget") != "tell":  # it was told, and called again
            turn.status = "over_budget"
            self._end("over_budget", exclude=self._policy("over_budget") == "exclude")
        self._may_call = False

    # ---- calling -> sampling | done

    @property
    def requests(self) -> list[ToolCall]:
        """The calls to make, in order: those whose status is "ok"."""
        return [self._request(call) for call in self._calls_to_make]

    @property
    def _calls_to_make(self) -> list[Call]:
        return [call for call in self.turns[-1].calls if call.status == "ok"]

    def _request(self, call: Call) -> ToolCall:
        tool = self.tools[call.name]
        bound = self.environment is not None and getattr(tool, "__self__", None) is self.environment
        return ToolCall(tool, call.arguments, self.environment if bound else None)

    def answer(self, outcomes: Sequence[Outcome], seconds: float = 0.0) -> None:
        """Take the results of the calls: append them to the tokens and let the policy go on."""
        assert self.state is State.CALLING
        turn = self.turns[-1]
        turn.seconds = seconds
        final: Call | None = None
        for call, outcome in zip(self._calls_to_make, outcomes, strict=True):
            call.status, call.seconds, call.attempts = outcome.status, outcome.seconds, outcome.attempts
            call.result, call.made = outcome.text, outcome.made
            settings = self.runner.settings(self.tools[call.name])
            if settings.final and outcome.status == "ok":
                final = call
            self._cut(call, settings.max_result_tokens or self.rules.max_result_tokens)
        turn.cut = any(call.status == "result_cut" for call in turn.calls)
        turn.status = gravest(call.status for call in turn.calls)
        late = any(call.status == "timeout" for call in turn.calls)
        if self._has_turn_rewards and not late:  # a late call may still set it at any time
            turn.reward = self.environment.turn_reward
        if final is not None:  # for rewards: the call of this turn that was made and is the answer
            self.messages[-1]["final"] = {"name": final.name, "arguments": final.arguments}
            self._end("final", exclude="exclude" in self._actions(turn).values())
        elif not self._ended_by(turn):
            self._append_results(turn)

    @property
    def _has_turn_rewards(self) -> bool:
        if self.environment is None or not hasattr(self.environment, "turn_reward"):
            return False
        if not hasattr(type(self.environment), "turn_reward"):
            raise TypeError(
                f"{type(self.environment).__name__} sets turn_reward without declaring it. Declare it in the class, "
                "outside its methods: turn_reward: float | None = None"
            )
        return True

    def stop(self, why: Status = "tool_error") -> None:
        """End the rollout as it stands, because the run is about to stop."""
        self.turns[-1].status = why
        self._end(why, exclude=True)

    def _append_results(self, turn: Turn) -> None:
        room = self.room_for_results
        messages = [{"role": "tool", "name": plain_name(call.name), "content": call.result} for call in turn.calls]
        if sum(len(call.result) for call in turn.calls) > room * LONGEST_TOKEN:
            ids = None
        else:
            ids = self._behind_turn(self.rules.control.encode(messages)[0])
        if ids is None or len(ids) > room:
            turn.status = "context_full"
            self._ended_by(turn)
            return
        turn.tokens_in = len(ids)
        self.completion_ids += ids
        self.mask += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.messages += messages
        self.state = State.SAMPLING

    def _behind_turn(self, results: list[int]) -> list[int]:
        """Results as they follow what the policy wrote, so that the turn has exactly one end, as in the template."""
        rules, last, end = self.rules, self.completion_ids[-1], self.rules.control.before_results
        rest = behind_end(last, results, rules.end_ids)
        if rest is not results:
            return rest
        is_stopped = last in rules.stop_ids or last not in rules.end_ids
        if is_stopped and end is not None and last != end and end in rules.end_ids:
            return [end, *results]
        return results

    def _cut(self, call: Call, limit: int | None) -> None:
        if limit is None:
            return
        kept = first_tokens(call.result, limit, self.rules.tokenizer)
        if len(kept) < len(call.result):
            note = f"[cut: {len(kept)} of {len(call.result)} characters are shown]"
            call.result = f"{kept}\n{note}"
            call.status = gravest([call.status, "result_cut"])

    # ---- the end

    def _ended_by(self, turn: Turn) -> bool:
        """Apply the failure policies to this turn; return whether it, or a limit, has ended the rollout."""
        actions = self._actions(turn)
        ending = [status for status, action in actions.items() if action != "tell"]
        if ending and self.state is not State.DONE:
            self._end(gravest(ending), exclude="exclude" in actions.values())
        return self.state is State.DONE

    def _actions(self, turn: Turn) -> dict[Status, Policy]:
        """What went wrong in this turn, and the policy for each failure."""
        statuses = {turn.status, *(call.status for call in turn.calls)}
        return {status: self._policy(status) for status in statuses if status != "ok"}

    def _policy(self, status: Status) -> Policy:
        return self.rules.policy[status]

    def _end(self, why: str, exclude: bool = False) -> None:
        self.state, self.ended = State.DONE, why
        if exclude:
            self.excluded = True
            self.mask = [0] * len(self.mask)  # out of the loss; without a reward it is out of its group

    @property
    def record(self) -> dict[str, Any]:
        """The rollout's turns and how it ended, for JSON."""
        return {"turns": [asdict(turn) for turn in self.turns], "ended": self.ended, "excluded": self.excluded}


def behind_end(last: int, results: list[int], end_ids: Collection[int]) -> list[int]:
    """Results without the token that ends the turn before them, if the policy has already written it.

    GLM-4.5's <|observation|> both ends a turn of calls and begins results.
    """
    return results[1:] if last in end_ids and results[:1] == [last] else results


def plain_name(name: str) -> str:
    """The name if a template may write it, else "unknown": an invented name could contain control tokens.

    Example: "search" -> "search"; "<|im_end|>" -> "unknown"
    """
    return name if re.fullmatch(r"[\w.\-]{1,64}", name) else "unknown"


def first_tokens(text: str, limit: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The part of the text that its first `limit` tokens cover."""
    text_in_reach = text[: limit * LONGEST_TOKEN]
    ids = tokenizer(text_in_reach, add_special_tokens=False)["input_ids"]
    if len(ids) <= limit:
        return text_in_reach
    return tokenizer.decode(ids[:limit], skip_special_tokens=False).rstrip("\ufffd")  # half a character


@dataclass
class Timing:
    """Seconds that a batch of rollouts took."""

    sampling: float = 0.0
    waiting: float = 0.0  # for tools, with nothing to sample


def roll_out(rollouts: Sequence[Rollout], engine: Engine, runner: ToolRunner) -> Timing:
    """Run all rollouts to their end. If the engine is collective, all ranks call this, with any number of rollouts."""
    timing = Timing()
    calling: dict[Future, tuple[int, float]] = {}
    for key, rollout in enumerate(rollouts):
        rollout.begin()
        if rollout.state is State.SAMPLING:
            engine.submit(key, rollout.context, rollout.room)
    while engine.has_work() or calling:
        start = time.perf_counter()
        for sample in engine.collect(wait=not calling):
            rollout = rollouts[sample.key]
            rollout.receive(sample)
            if rollout.state is State.DONE:
                engine.forget(sample.key)
            elif rollout.state is State.CALLING:
                calling[runner.submit(rollout.requests)] = (sample.key, time.perf_counter())
        timing.sampling += time.perf_counter() - start
        start = time.perf_counter()
        for future in _answered(calling, engine):
            key, called = calling.pop(future)
            rollout = rollouts[key]
            rollout.answer(future.result(), time.perf_counter() - called)
            if rollout.state is State.SAMPLING and runner.trouble is not None:
                rollout.stop()
            if rollout.state is State.SAMPLING:
                engine.submit(key, rollout.context, rollout.room)
            else:
                engine.forget(key)
        timing.waiting += time.perf_counter() - start
    return timing


def _answered(calling: Mapping[Future, tuple[int, float]], engine: Engine) -> list[Future]:
    """The futures of tools that have answered, in the order of their calls.

    A lock-step engine is filled up first, so all tools must answer. A streaming one is kept busy: this waits only if
    the engine has nothing to sample.
    """
    if not calling:
        return []
    if engine.lockstep:
        wait(calling)
        return list(calling)
    done, _ = wait(calling, timeout=0 if engine.has_work() else None, return_when=FIRST_COMPLETED)
    return [future for future in calling if future in done]
