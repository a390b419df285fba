"""a trainer's log, line by line -> alarms, each 0 or 1, and advice that is given once.

    alarms/calls                              the policy collapses
    alarms/entropy, alarms/teach_nothing      the policy has stopped learning: it is stuck, or the task is solved
    alarms/gains                              gains credit nothing, before the policy has learnt
    alarms/clipping                           no collapse, but a hint: the policy could learn faster

An alarm compares the last five lines of the log with the first five, or looks only at the last five, so no single
batch raises it. It reads only the log, which checkpoints hold: a resumed run reads it again and has the same alarms as
a run that was never interrupted. All ranks log the same numbers, and so have the same alarms.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot
from statistics import fmean
from typing import Any


LINES = 5  # at the beginning and at the end of the log

FEW_CALLS, HARDLY_ANY_CALL, NEVER_CALLED = 0.25, 0.5, 0.2  # share kept; tool turns per rollout: now, at first
LITTLE_ENTROPY = 0.05  # share of the entropy at first
# Share of a turn's tokens. It lies between two measured shares (recipes/study/README.md), where a turn has one ratio
# and is clipped as a whole: 0.102, and 0.019 with ten times the range, which learnt faster. Ratios of single tokens
# are clipped less often, 0.003 there, so the threshold is more than enough for them.
MUCH_CLIPPED = 0.05

# A log does not say how high a reward can be. The highest is taken to be 1, or more if rollouts earned more.
HIGHEST = 1.0
A_RISE = 0.5  # of the reward, as a multiple of its spread at first
MEDIUM_SPREAD = 0.5 * HIGHEST  # of a reward of 0 or 1 when half of the rollouts pass
NEARLY = 0.9  # of the highest reward


@dataclass
class FirstAndLast:
    """A metric's values in the first lines that had it, and in the last."""

    first: list[float] = field(default_factory=list)
    last: deque[float] = field(default_factory=lambda: deque(maxlen=LINES))

    def add(self, value: float) -> None:
        self.last.append(value)
        if len(self.first) < LINES:
            self.first.append(value)

    @property
    def is_full(self) -> bool:
        return len(self.first) == LINES


History = Mapping[str, FirstAndLast]


@dataclass(frozen=True)
class Alarm:
    """When it goes off, and what to do then. It is logged in each line that has the metric it reads."""

    name: str
    reads: str  # the metric that it needs
    when: str
    do: str
    goes_off: Callable[[History], bool]  # asked once there are five lines with that metric


def calls_die_out(history: History) -> bool:
    """Example: turns/mean 3.4 at first and 1.2 now: 0.2 of 2.4 tool turns are left -> True; 1.9 now -> False"""
    first, last = (fmean(values) - 1 for values in (history["turns/mean"].first, history["turns/mean"].last))
    return first >= NEVER_CALLED and last < min(FEW_CALLS * first, HARDLY_ANY_CALL)


def entropy_is_gone(history: History) -> bool:
    """Example: entropy 0.5 at first and 0.02 now -> True; 0.03 now -> False"""
    little = fmean(history["entropy"].last) < LITTLE_ENTROPY * fmean(history["entropy"].first)
    return little and may_be_stuck(history)


def nothing_is_taught(history: History) -> bool:
    return min(history["groups/teach_nothing"].last) >= 1 and may_be_stuck(history)


def gains_say_nothing(history: History) -> bool:
    return min(history["gain/cells_below_floor"].last) >= 1 and may_be_stuck(history)


def much_is_clipped(history: History) -> bool:
    return fmean(history["clip_fraction/mean"].last) > MUCH_CLIPPED


def may_be_stuck(history: History) -> bool:
    """Whether the reward does not rule out that the policy is stuck.

    A policy that finds every answer also has low entropy and groups that teach nothing: that is no collapse.

    Example: reward 0 at first, for all rollouts alike, and 0.1 now -> True: perhaps it earns no more than a form
    """
    if not history["reward"].first:
        return True
    reward, spread = (fmean(history[name].first or [0.0]) for name in ("reward", "reward_std"))
    now = fmean(history["reward"].last)
    return not (has_learnt(reward, spread, now) or has_solved(reward, spread, now))


def has_learnt(reward: float, spread: float, now: float) -> bool:
    """Whether the mean reward has risen from `reward` to `now` by more than half of its spread at first.

    If rollouts earned much the same at first, their spread does not show what they could earn, so it counts as at
    least 0.5.

    Example: 0.4, with a spread of 0.6, and 0.75 now -> True; 0.65 now -> False. 0 for all, and 0.2 now -> False
    """
    return now - reward > A_RISE * max(spread, MEDIUM_SPREAD)


def has_solved(reward: float, spread: float, now: float) -> bool:
    """Whether the mean reward is now near the highest; a reward that starts near it cannot rise much.

    Some rollout earned, or lost, at least the root of the mean square. If that is above 1, it is taken as the highest.

    Example: 0.88, with a spread of 0.3, and 1.0 now -> True; 0.9, 1.0 (rewards of 0 and 2) and 1.0 now -> False
    """
    return now >= NEARLY * max(HIGHEST, hypot(reward, spread))


NOT_SHOWN = (
    "and the reward does not show that the policy has learnt: since the first five lines it has risen by at most half "
    f"of its spread in those lines (reward_std, counted as at least {MEDIUM_SPREAD}), and it is below {NEARLY:.0%} of "
    f"{HIGHEST:.0f} (or of its root mean square in those lines, if that is higher)"
)
HOW_TO_TELL = (
    "is each rewards/NAME/mean as high as that reward can be, and are answers right in the rollouts that you read "
    "(a2tgpo show)? Then the task is solved: stop, or take harder questions. If not, the policy is stuck"
)
ALARMS = (
    Alarm(
        "alarms/calls",
        "turns/mean",
        f"calls die out: rollouts have less than {FEW_CALLS:.0%} of the tool turns that they had in the first five "
        f"lines (at least {NEVER_CALLED}), and on average fewer than {HARDLY_ANY_CALL}",
        "read rollouts from before and after. Is a guessed answer as good as one that was looked up? Then ask what "
        "cannot be guessed. Are calls punished, by a turn reward or by failures (turns/tool_error, turns/timeout)? "
        "Lower the learning rate, or keep the policy near its start (beta: 0.01).",
        calls_die_out,
    ),
    Alarm(
        "alarms/entropy",
        "entropy",
        f"solved or stuck: entropy is below {LITTLE_ENTROPY:.0%} of that of the first five lines, {NOT_SHOWN}",
        f"{HOW_TO_TELL}: rollouts became alike before the policy was good, or all do what earns only a small part of "
        "the reward, such as the right format. Go back to an earlier checkpoint with a lower learning rate, a wider "
        "epsilon_high, an entropy bonus (entropy_coef: 0.001) or a higher temperature.",
        entropy_is_gone,
    ),
    Alarm(
        "alarms/teach_nothing",
        "groups/teach_nothing",
        f"solved or stuck: no group taught anything in the last five lines, {NOT_SHOWN}",
        f"{HOW_TO_TELL}. If all rollouts fail: do calls reach the tools, does the answer have the form that the "
        "reward reads, are questions too hard? If all rollouts are the same: see alarms/entropy. resample_limit rolls "
        "such prompts out again.",
        nothing_is_taught,
    ),
    Alarm(
        "alarms/gains",
        "gain/cells_below_floor",
        "gains credit no turn: in the last five lines none differed from its cell's mean by more than rounding, "
        f"{NOT_SHOWN}",
        f"{HOW_TO_TELL}, or the gains are at fault. Does probe_template have the form in which the policy answers "
        "(value/before far below value/after where its answers are right)? Do results differ between rollouts at all? "
        "In 16 bits, gain/floor may be above all gains: compute in float32.",
        gains_say_nothing,
    ),
    Alarm(
        "alarms/clipping",
        "clip_fraction/mean",
        "the clip range is narrow for the size of the updates (a hint, not a collapse): more than "
        f"{MUCH_CLIPPED:.0%} of the tokens of a turn were clipped in the last five lines",
        "such a policy learns, but clipped tokens teach nothing, and a wider range may be faster. In recipes/study, "
        "the default range of credit: a2tgpo clipped 0.102 of turns; a range ten times as wide clipped 0.019, and the "
        "policy learnt faster. Try epsilon and epsilon_high three times and ten times as wide; or lower the learning "
        "rate or the steps on a batch (num_iterations, steps_per_generation).",
        much_is_clipped,
    ),
)
READ = (*(alarm.reads for alarm in ALARMS), "reward", "reward_std")


def averaged(entries: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the metrics that alarms read, averaged over entries since the last line of the log, as the trainer does.

    Example: {"reward": [0.5, nan, 1.0], "loss": [0.1]} -> {"reward": 0.75}
    """
    known = {name: [value for value in entries[name] if value == value] for name in READ if name in entries}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


class Alarms:
    """The alarms of a run, from its log. A log shorter than the part already read means that a new run has begun."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lines = 0  # lines of the log that were read
        self._history = {name: FirstAndLast() for name in READ}
        self._said: set[str] = set()

    def see(self, log: Sequence[Mapping[str, Any]], line: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
        """Read a line that is about to be logged, after those that are already in the log.

        Returns the alarms to log with it, and a message for each alarm that goes off for the first time. Alarms raised
        by lines from before a run was resumed were reported then and are not reported again.
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
            if value is not None and value == value:  # None if no rollout was scored; may be NaN
                series.add(value)

    def _now(self, line: Mapping[str, Any]) -> dict[str, float]:
        return {
            alarm.name: float(self._history[alarm.reads].is_full and alarm.goes_off(self._history))
            for alarm in ALARMS
            if alarm.reads in line
        }
