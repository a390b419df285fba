"""records of an evaluation with gains, in a world that knows which searches were of use -> how well gains tell them.

For a turn that searches, the world's truth is whether it brought up a document that the question still needs
(`tasks/atlas/useful.py`). AUC is the chance that the gain of a turn that did is above that of one that did not: 0.5 is
no better than a coin, 1 is never wrong.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..tasks.atlas.useful import COLUMN, useful_search


MOST_TURNS = 8  # that are told apart

Turn = tuple[int, int, float, bool]  # its place (1, 2, ...), the hops of the question, its gain, whether it was of use


def mechanism(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """The share of turns that are of use, and AUC of gains: of all turns, by place and by hops."""
    if not records or COLUMN not in records[0]:
        return
    for place in range(MOST_TURNS):
        uses = [useful[place] for record in records if place < len(useful := useful_search(record))]
        known = [use for use in uses if use is not None]
        if known:
            yield f"useful/share_turn_{place + 1}", float(np.mean(known))
    turns = list(turns_of(records))
    groups = {"useful/auc": turns}
    for place, hops, *_ in turns:
        groups.setdefault(f"useful/auc_turn_{place}", [turn for turn in turns if turn[0] == place])
        groups.setdefault(f"useful/auc/hops {hops}", [turn for turn in turns if turn[1] == hops])
    for name, group in groups.items():
        found = auc([gain for *_, gain, use in group if use], [gain for *_, gain, use in group if not use])
        if found is not None:
            yield name, found


def turns_of(records: Iterable[Mapping[str, Any]]) -> Iterator[Turn]:
    """Those whose gain and use are known."""
    for record in records:
        pairs = zip(record.get("gains", ()), useful_search(record), strict=False)
        for place, (gain, use) in enumerate(pairs, start=1):
            if gain is not None and use is not None and place <= MOST_TURNS:
                yield place, record["hops"], gain, bool(use)


def auc(above: Sequence[float], below: Sequence[float]) -> float | None:
    """The chance that one of the first is greater than one of the second; a tie is half of one. None without pairs.

    Example: 3, 1 and 2, 1 -> of four pairs 3 > 2, 3 > 1, 1 < 2, 1 = 1: 2.5 / 4 = 0.625
    """
    if not above or not below:
        return None
    smaller = np.sort(np.asarray(below))
    less = np.searchsorted(smaller, above, side="left")
    ties = np.searchsorted(smaller, above, side="right") - less
    return float((less + ties / 2).mean() / len(below))
