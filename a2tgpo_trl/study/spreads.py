"""records of a batch that was trained on -> how gains, credit and clip ranges are spread, by turn and overall.

`credit` is what a turn's advantage has beyond that of its whole rollout.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..turns import LOGGED_TURNS


OF_TURNS = ("gains", "scores", "credit", "advantages", "clip_scale")
QUANTILES = (5, 25, 50, 75, 95)

Rollout = Mapping[str, Any]
Found = Iterator[tuple[str, float]]


def spreads(records: Sequence[Rollout]) -> Found:
    for name in OF_TURNS:
        yield from by_turn(records, name)
    yield from envelope(records)
    yield from calls(records)
    yield from clip_scales(records)
    yield from sums(records)


def by_turn(records: Sequence[Rollout], name: str) -> Found:
    """Yield the number of tool turns at each depth, and the mean and deviation over them."""
    for place in range(LOGGED_TURNS):
        values = [value for record in records if (value := of_tool_turn(record, name, place)) is not None]
        if values:
            yield f"by_turn/{name}/number_turn_{place + 1}", float(len(values))
            yield f"by_turn/{name}/mean_turn_{place + 1}", float(np.mean(values))
            yield f"by_turn/{name}/std_turn_{place + 1}", float(np.std(values))


def of_tool_turn(record: Rollout, name: str, place: int) -> float | None:
    """Return the value of a tool turn, if there is one."""
    values = record.get(name, ())
    return values[place] if place < min(len(values), record["tool_turns"]) else None


def envelope(records: Sequence[Rollout]) -> Found:
    """Yield the smallest, the mean and the largest advantage of a turn."""
    values = [advantage for record in records for advantage in record["advantages"]]
    if values:
        yield "advantages/smallest", float(min(values))
        yield "advantages/mean", float(np.mean(values))
        yield "advantages/largest", float(max(values))


def calls(records: Sequence[Rollout]) -> Found:
    """Yield the share of rollouts with each number of calls; the last covers that many or more.

    Example: rollouts with 2, 2 and 0 calls -> 1/3 with 0, 0 with 1, 2/3 with 2, 0 with 3 and so on
    """
    made = [sum(len(turn["calls"] or ()) for turn in record["turns"]) for record in records if "turns" in record]
    times = Counter(min(number, LOGGED_TURNS) for number in made)
    for number in range(LOGGED_TURNS + 1) if made else ():
        yield f"calls/share_of_{number}", times[number] / len(made)


def clip_scales(records: Sequence[Rollout]) -> Found:
    """Yield quantiles of clip scales over tool turns."""
    scales = [scale for record in records for scale in record.get("clip_scale", ())[: record["tool_turns"]]]
    if scales:
        for percent, value in zip(QUANTILES, np.percentile(scales, QUANTILES), strict=True):
            yield f"clip_scale/quantile_{percent}", float(value)


def sums(records: Sequence[Rollout]) -> Found:
    """Yield the variance of sums of a rollout's last n z-scores, n > 1, and its parts.

        variance     of (z_1 + ... + z_n) / sqrt(n), over the rollouts with n z-scores or more
        of a term    the mean variance of one of the n, over the same rollouts: sigma^2 in the paper's Proposition 2
        covariance   the mean covariance of two of the n: delta. The first is the second plus n - 1 times the third.

    Example: rollouts with z-scores 1, 1 and -1, -1 -> terms have variance 1 and covariance 1, the sum of two 2
    """
    rows = [[z for z in record.get("scores", ())[: record["tool_turns"]] if z is not None] for record in records]
    for terms in range(2, LOGGED_TURNS + 1):
        ends = np.array([row[-terms:] for row in rows if len(row) >= terms])
        if len(ends) > 1:
            covariances = np.cov(ends, rowvar=False, ddof=0)
            of_terms = float(np.trace(covariances)) / terms
            yield f"sums/number_of_{terms}", float(len(ends))
            yield f"sums/variance_of_{terms}", float(np.var(ends.sum(axis=1) / terms**0.5))
            yield f"sums/term_variance_of_{terms}", of_terms
            yield f"sums/term_covariance_of_{terms}", float(covariances.sum() / terms - of_terms) / (terms - 1)
