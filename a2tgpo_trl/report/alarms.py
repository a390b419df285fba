"""a trainer's log, line by line -> alarms for a policy that collapses: 0 or 1 each, and what to do, said once.

An alarm compares the last five lines of the log with the first five, or looks at the last five alone: no single batch
raises it. It reads nothing but the log, which a checkpoint holds: a run that goes on reads it again, and has the
alarms of one that was never interrupted. All ranks log the same numbers, and so have the same alarms.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any


LINES = 5  # of the log, at its beginning and at its end

FEW_CALLS, HARDLY_ANY_CALL, NEVER_CALLED = 0.25, 0.5, 0.2  # of those at first; tool turns a rollout, now and at first
LITTLE_ENTROPY = 0.05  # of that at first
MUCH_CLIPPED = 0.05  # of the tokens of a turn
A_RISE = 0.5  # of the reward, in its spread at first


@dataclass
class Series:
    """A metric as it was in the first lines that had it, and as it is in the last."""

    first: list[float] = field(default_factory=list)
    last: deque[float] = field(default_factory=lambda: deque(maxlen=LINES))

    def add(self, value: float) -> None:
        self.last.append(value)
        if len(self.first) < LINES:
            self.first.append(value)

    @property
    def is_full(self) -> bool:
        return len(self.first) == LINES


History = Mapping[str, Series]


@dataclass(frozen=True)
class Alarm:
    """When it goes off, and what to do then. It is logged in each line that has what it reads."""

    name: str
    reads: str  # the metric without which it says nothing
    when: str
    do: str
    goes_off: Callable[[History], bool]  # once there are five lines of that metric


def calls_die_out(history: History) -> bool:
    """Example: turns/mean 3.4 at first and 1.2 now: 0.2 of 2.4 tool turns are left -> True; 1.9 now -> False"""
    first, last = (fmean(values) - 1 for values in (history["turns/mean"].first, history["turns/mean"].last))
    return first >= NEVER_CALLED and last < min(FEW_CALLS * first, HARDLY_ANY_CALL)


def entropy_is_gone(history: History) -> bool:
    """Example: entropy 0.5 at first and 0.02 now -> True; 0.03 now -> False"""
    little = fmean(history["entropy"].last) < LITTLE_ENTROPY * fmean(history["entropy"].first)
    return little and not has_learnt(history)


def nothing_is_taught(history: History) -> bool:
    return min(history["groups/teach_nothing"].last) >= 1 and not has_learnt(history)


def gains_say_nothing(history: History) -> bool:
    return min(history["gain/cells_below_floor"].last) >= 1 and not has_learnt(history)


def much_is_clipped(history: History) -> bool:
    return fmean(history["clip_fraction/mean"].last) > MUCH_CLIPPED


def has_learnt(history: History) -> bool:
    """Whether the reward has risen by more than half of what it was spread by at first. A policy that finds every
    answer is sure of itself as well, and teaches nothing more: that is no collapse.

    Example: reward 0.5 with a reward_std of 0.4 at first, 0.9 now -> True; 0.6 now -> False
    """
    reward, spread = history["reward"], history["reward_std"]
    return bool(reward.first) and fmean(reward.last) - fmean(reward.first) > A_RISE * fmean(spread.first or [0.0])


NOT_RISEN = (
    "and the reward is not above that of the first five lines by more than half of its spread then (reward_std)"
)
ALARMS = (
    Alarm(
        "alarms/calls",
        "turns/mean",
        f"calls die out: a rollout has less than {FEW_CALLS:.0%} of the tool turns of the first five lines, and less "
        f"than {HARDLY_ANY_CALL}",
        "read rollouts of before and after. Is an answer by guess as good as one that was looked up? Then ask what "
        "cannot be guessed. Are calls punished, by a turn reward or by failures (turns/tool_error, turns/timeout)? "
        "Lower the learning rate, or hold the policy to where it began (beta: 0.01).",
        calls_die_out,
    ),
    Alarm(
        "alarms/entropy",
        "entropy",
        f"entropy is gone: it is below {LITTLE_ENTROPY:.0%} of that of the first five lines, {NOT_RISEN}",
        "where the reward is as high as it can be, stop. Else rollouts have become alike before the policy was good: "
        "go back to an earlier checkpoint with a lower learning rate, a wider epsilon_high, a bonus for entropy "
        "(entropy_coef: 0.001) or a higher temperature.",
        entropy_is_gone,
    ),
    Alarm(
        "alarms/teach_nothing",
        "groups/teach_nothing",
        f"no group taught anything in the last five lines, {NOT_RISEN}",
        "read some rollouts. Where all fail: do calls reach the tools, does the answer have the form that the reward "
        "reads, are questions too hard? Where all pass: take harder ones. Where they are all the same: see "
        "alarms/entropy. resample_limit rolls such prompts out again.",
        nothing_is_taught,
    ),
    Alarm(
        "alarms/gains",
        "gain/cells_below_floor",
        f"in the last five lines no gain differed from its cell's mean by more than rounding, {NOT_RISEN}",
        "gains credit no turn. Does probe_template have the form in which the policy answers (value/before far below "
        "value/after where it answers right)? Do results differ between rollouts at all? In 16 bits, gain/floor may "
        "be above all gains: compute in float32.",
        gains_say_nothing,
    ),
    Alarm(
        "alarms/clipping",
        "clip_fraction/mean",
        f"more than {MUCH_CLIPPED:.0%} of the tokens of a turn were clipped in the last five lines",
        "the clip range is narrow for the updates, and clipped tokens teach nothing: widen epsilon and epsilon_high "
        "(three times, then ten times), or lower the learning rate or the steps on a batch (num_iterations, "
        "steps_per_generation).",
        much_is_clipped,
    ),
)
READ = (*(alarm.reads for alarm in ALARMS), "reward", "reward_std")


def averaged(entries: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of what was noted since the last line of the log, what alarms read, as the trainer averages it.

    Example: {"reward": [0.5, nan, 1.0], "loss": [0.1]} -> {"reward": 0.75}
    """
    known = {name: [value for value in entries[name] if value == value] for name in READ if name in entries}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


class Alarms:
    """Of a run, from its log. A new run begins where the log is shorter than what was read of it."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lines = 0  # of the log, that were read
        self._history = {name: Series() for name in READ}
        self._said: set[str] = set()

    def see(self, log: Sequence[Mapping[str, Any]], line: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
        """The line that is about to be logged, after those that are in the log.

        Returns the alarms to log with it, and what to tell the user of those that go off for the first time. Where a
        resumed run reads the lines of the one before, what they raised was told then.
        """
        if len(log) < self._lines:
            self._begin()
        for earlier in log[self._lines :]:
            self._read(earlier)
            self._said |= {name for name, is_on in self._now(earlier).items() if is_on}
        self._read(line)
        self._lines = len(log) + 1
        found = self._now(line)
        new = [alarm for alarm in ALARMS if found.get(alarm.name) and alarm.name not in self._said]
        self._said |= {alarm.name for alarm in new}
        return found, [f"{alarm.name}: {alarm.when}. What to do: {alarm.do}" for alarm in new]

    def _read(self, line: Mapping[str, Any]) -> None:
        for name, series in self._history.items():
            value = line.get(name)
            if value is not None and value == value:  # nobody scored it, or NaN
                series.add(value)

    def _now(self, line: Mapping[str, Any]) -> dict[str, float]:
        return {
            alarm.name: float(self._history[alarm.reads].is_full and alarm.goes_off(self._history))
            for alarm in ALARMS
            if alarm.reads in line
        }
