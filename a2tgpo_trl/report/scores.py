"""records of rollouts -> means over questions with confidence intervals -> a table."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.table import Table

from ..rewards import RIGHT_OR_WRONG


CONFIDENCE = 0.95
RESAMPLES = 2000
TURNS, CALLS, RIGHT_PER_CALL = "tool turns", "tool calls", "right answers per call"

Pair = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A mean over questions, and the interval that has the mean over all such questions with 95 % confidence."""

    mean: float
    low: float
    high: float
    number: int

    def __str__(self) -> str:
        if self.number == 1 and self.low == self.high:  # there is no interval
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


Row = dict[str, Estimate]  # by the name of a score


def interval(values: Sequence[float], share: bool, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean and the confidence interval of one number per question.

    A share (of questions, or of each one's rollouts) has Wilson's interval, which stays honest at 0 % and 100 %. Other
    numbers have percentiles of means over questions drawn with replacement (bootstrap).

    Example: 8 of 10 right -> 0.8 (0.490 to 0.943)
    """
    if not share:
        return bootstrap([[(value, 1.0) for value in values]], confidence)
    number, mean = len(values), sum(values) / len(values)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (mean + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(mean * (1 - mean) / number + z * z / (4 * number * number))
    return Estimate(mean, min(max(centre - half, 0.0), mean), max(min(centre + half, 1.0), mean), number)


def bootstrap(sets: Sequence[Sequence[Pair]], confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean over sets of sum(a) / sum(b), with one (a, b) per question, and its percentiles over draws.

    Questions are drawn with replacement within their set.

    Example: [(1, 2), (0, 2)] and [(1, 1)] -> mean of 1 / 4 and 1 / 1 = 0.625
    """
    rng, means, draws = np.random.default_rng(0), [], []
    for pairs in sets:
        # Thousands of questions may have few distinct pairs, such as those for 1 and 0.
        distinct, counts = np.unique(np.asarray(pairs, dtype=float), axis=0, return_counts=True)
        means.append(ratios(counts @ distinct))
        draws.append(ratios(np.stack([drawn @ distinct for drawn in drawn_again(rng, counts)])))
    return estimate(np.mean(means), np.mean(draws, axis=0), sum(map(len, sets)), confidence)


def drawn_again(rng: np.random.Generator, counts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield, for each bootstrap draw, how often each distinct thing occurs; `counts` says how many there are."""
    number = int(counts.sum())
    return (rng.multinomial(number, counts / number) for _ in range(RESAMPLES))


def estimate(mean: float, draws: np.ndarray, number: int, confidence: float = CONFIDENCE) -> Estimate:
    """Return a mean with its percentiles over draws, without those that are NaN."""
    low, high = np.nanquantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(mean), float(low), float(high), number)


def ratios(sums: np.ndarray) -> np.ndarray:
    """Return the first of two sums divided by the second; NaN if that is 0, as when no question drawn has a call."""
    above, below = sums[..., 0], sums[..., 1]
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


# ---- scores of records


def per_question(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[Any, Pair]]:
    """Return each score as a pair per question, whose sums over questions are divided; for a mean, the second is 1.

    Several rollouts of one question are averaged first, because they are not independent samples.
    """
    by_row: dict[Any, list[dict[str, float]]] = {}
    for record in records:
        by_row.setdefault(record["row"], []).append(_numbers(record))
    names = dict.fromkeys(name for rollouts in by_row.values() for rollout in rollouts for name in rollout)
    found: dict[str, dict[Any, Pair]] = {}
    for name in names:
        given = {row: [rollout[name] for rollout in rollouts if name in rollout] for row, rollouts in by_row.items()}
        found[name] = {row: (sum(values) / len(values), 1.0) for row, values in given.items() if values}
    right = next((name for name in names if name in RIGHT_OR_WRONG), None)
    if right is not None and any(calls for calls, _ in found.get(CALLS, {}).values()):
        found[RIGHT_PER_CALL] = {
            row: (share, found[CALLS][row][0]) for row, (share, _) in found[right].items() if row in found[CALLS]
        }
    return found


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """A rollout's rewards, its tool turns and, if its calls are on record, the calls that reached their tool."""
    numbers = {name: value for name, value in record["rewards"].items() if value is not None}
    numbers[TURNS] = float(record["tool_turns"])
    calls = [turn["calls"] for turn in record.get("turns", [{"calls": None}])]
    if None not in calls:  # a rollout function makes its own calls, which are not on record
        numbers[CALLS] = float(sum(call["made"] for of_turn in calls for call in of_turn))
    return numbers


def score(records: Iterable[Mapping[str, Any]]) -> Row:
    """Return means over questions of each reward, tool turns and calls, and right answers per call, with intervals."""
    found = {name: list(pairs.values()) for name, pairs in per_question(records).items()}
    return {
        name: interval([value for value, _ in pairs], share=True) if name in RIGHT_OR_WRONG else bootstrap([pairs])
        for name, pairs in found.items()
    }


def plain_score(sets: Sequence[Sequence[Mapping[str, Any]]]) -> Row:
    """Return the same as means over the sets' own scores, so that a small set counts as much as a large one."""
    found = [per_question(records) for records in sets]
    shared = [name for name in found[0] if all(name in one for one in found)]
    return {name: bootstrap([list(one[name].values()) for one in found]) for name in shared}


@dataclass(frozen=True)
class Scores:
    """Scores of an evaluation: over all rows, for each value of a column, and for each collection of the task."""

    everything: Row
    groups: dict[str, Row]
    averages: dict[str, Row] = field(default_factory=dict)  # over the questions of a collection
    plain: dict[str, Row] = field(default_factory=dict)  # over the means of its groups

    @classmethod
    def of(
        cls,
        records: Sequence[Mapping[str, Any]],
        group_by: str | None,
        averages: Mapping[str, Mapping[str, Sequence[Any]]] = MappingProxyType({}),
    ) -> "Scores":
        groups = {f"{group_by} {value}": score(part) for value, part in grouped(records, group_by).items()}
        gathered = {name: _having(records, wanted) for name, wanted in averages.items()}
        gathered = {name: found for name, found in gathered.items() if found}
        parts = {name: list(grouped(found, group_by).values()) for name, found in gathered.items()}
        return cls(
            score(records),
            groups,
            {name: score(found) for name, found in gathered.items()},
            {f"{name}, each {group_by} alike": plain_score(sets) for name, sets in parts.items() if len(sets) > 1},
        )

    @property
    def number(self) -> int:
        """How many questions were asked."""
        return self.everything[TURNS].number

    @property
    def lines(self) -> dict[str, Row]:
        """All scores but those of `everything`, in the order of a table."""
        return {**self.groups, **self.averages, **self.plain}

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), indent=2) + "\n")


def grouped(records: Sequence[Mapping[str, Any]], column: str | None) -> dict[Any, list[Mapping[str, Any]]]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    if column is None:
        return groups
    for record in records:
        groups.setdefault(columns_of(record)[column], []).append(record)
    return dict(sorted(groups.items(), key=lambda group: _place(group[0])))


def _place(value: Any) -> tuple[bool, str, Any]:
    """Where a value comes among those of a column: numbers by size, then text, and None last."""
    return value is None, "" if isinstance(value, (int, float)) else type(value).__name__, value


def columns_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a record's row beside its own keys; of a name that both have, the column counts.

    Example: {"hops": 2, "turns": [...], "columns": {"turns": 3}} -> {"hops": 2, "turns": 3, ...}
    """
    return {**record, **(record.get("columns") or {})}


def has_lines(value: Any) -> bool:
    """Whether a table can have a line for this value of a column: text, a number, true, false or nothing."""
    return value is None or isinstance(value, (str, int, float))


def _having(records: Sequence[Mapping[str, Any]], wanted: Mapping[str, Sequence[Any]]) -> list[Mapping[str, Any]]:
    return [
        record for record in records if all(columns_of(record)[column] in values for column, values in wanted.items())
    ]


# ---- for readers


def score_table(columns: dict[str, Scores], title: str) -> Table:
    """Return a table of scores side by side: a line for each reward, and below the first one a line for each group."""
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("mean (95 % interval)")
    for name in columns:
        table.add_column(name, justify="right")
    first = next(iter(columns.values()))
    for i, line in enumerate(first.everything):
        cells = [scores.everything.get(line, "") for scores in columns.values()]
        table.add_row(line.replace("_", " "), *map(str, cells), style="bold" if i == 0 else None)
        for group in first.lines if i == 0 else ():
            cells = [scores.lines.get(group, {}).get(line, "") for scores in columns.values()]
            table.add_row(f"  {group}", *map(str, cells))
    return table


def markdown(scores: Scores, title: str) -> str:
    """Return the scores as a Markdown table: a line for all questions and for each group, a column for each score."""
    names = list(scores.everything)
    lines = [["questions", "number", *(name.replace("_", " ") for name in names)]]
    for label, row in {"all": scores.everything, **scores.lines}.items():
        lines.append([label, f"{row[TURNS].number:,}", *(str(row.get(name, "")) for name in names)])
    head, *body = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    rule = f"|---|{'---:|' * (len(names) + 1)}"
    return "\n".join([f"# {title}", "", "Means, with their 95 % intervals.", "", head, rule, *body]) + "\n"
