"""finished rollouts -> how their turns and calls ended, counted over all ranks -> a flat dict of scalars."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

from .failures import STATUSES, Status
from .rollout import Rollout


# How a call can end that was made, or could have been. The other statuses are of the turn and name no tool.
OF_A_TOOL: tuple[Status, ...] = ("ok", "result_cut", "bad_arguments", "tool_error", "timeout")


@dataclass
class Tally:
    """Counts of a batch of rollouts. Tallies of ranks add up."""

    rollouts: int = 0
    excluded: int = 0
    judged: int = 0  # by their environments, or should have been
    failed_rewards: int = 0
    retries: int = 0
    hung: int = 0
    seconds: float = 0.0  # of all calls together
    turns: Counter[str] = field(default_factory=Counter)  # by status
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)  # by tool and status

    @classmethod
    def of(cls, rollouts: Iterable[Rollout], hung: int = 0, judged: int = 0, failed_rewards: int = 0) -> "Tally":
        tally = cls(hung=hung, judged=judged, failed_rewards=failed_rewards)
        for rollout in rollouts:
            tally.rollouts += 1
            tally.excluded += rollout.excluded
            for turn in rollout.turns:
                tally.turns[turn.status] += 1
                for call in turn.calls:
                    tally.calls[call.name if call.name in rollout.tools else "", call.status] += 1
                    tally.retries += max(call.attempts - 1, 0)
                    tally.seconds += call.seconds
        return tally

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, name.name) + getattr(other, name.name) for name in fields(self)))

    @property
    def made(self) -> int:
        """Number of calls of the policy, whatever came of them."""
        return self.calls.total()

    @property
    def failed(self) -> int:
        return sum(number for (_, status), number in self.calls.items() if status not in ("ok", "result_cut"))

    def dead_tools(self, at_least: int) -> list[str]:
        """Tools with at least this many calls, all of which failed."""
        of_tool: dict[str, Counter[str]] = {}
        for (tool, status), number in self.calls.items():
            of_tool.setdefault(tool, Counter())[status] += number
        return [
            tool
            for tool, by_status in of_tool.items()
            if tool and by_status["tool_error"] + by_status["timeout"] == by_status.total() >= at_least
        ]

    def metrics(self, tools: Sequence[str]) -> dict[str, float]:
        """Shares of turns by status, and of each tool's calls by status. Every batch has the same names."""
        turns = max(self.turns.total(), 1)
        scalars = {f"turns/{status}": self.turns[status] / turns for status in STATUSES}
        for tool in tools:
            made = sum(self.calls[tool, status] for status in STATUSES)
            scalars |= {f"tools/{tool}/{status}": self.calls[tool, status] / max(made, 1) for status in OF_A_TOOL}
            scalars[f"tools/{tool}/calls"] = made / max(self.rollouts, 1)
        return {
            **scalars,
            "tools/retries": self.retries,
            "tools/hung": self.hung,
            "tools/seconds": self.seconds / max(self.made, 1),
            "rollouts/excluded": self.excluded / max(self.rollouts, 1),
            "rollouts/failed_rewards": self.failed_rewards / max(self.judged, 1),
        }
