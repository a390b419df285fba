"""records with gains, in a world that knows which searches were useful -> how well gains and credit identify these.

A search is useful if it found a document that the question still needs (`tasks/atlas/useful.py`). AUC is the chance
that the number of a useful turn is above that of a turn that is not: 0.5 is no better than a coin, 1 is never wrong.
`credit` is what a turn's advantage has beyond that of its whole rollout.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np

from ..tasks.atlas.useful import COLUMN, useful_search
from ..turns import LOGGED_TURNS
from .spreads import OF_TURNS, Found, Rollout, of_tool_turn, spreads


ROUNDING = 1e-4

Numbers = Sequence[float | None]


def mechanism(records: Sequence[Rollout]) -> Found:
    """Yield, for an evaluation, the share of useful searches and how well gains identify them."""
    if records and COLUMN in records[0]:
        yield from _shares(records)
        yield from aucs(records, "gains")


def mechanism_of_training(records: Sequence[Rollout]) -> Found:
    """Yield the same for a batch trained on (`record_every`), also for credit, with spreads and similarity."""
    records = with_credit(records)
    yield from spreads(records)
    if records and COLUMN in records[0]:
        yield from _shares(records)
        for name in OF_TURNS:
            yield from aucs(records, name)
    yield from similarity(records)


def with_credit(records: Sequence[Rollout]) -> list[Rollout]:
    """Return the credited records of a batch, each with its `credit`, which is empty for a method that adds none."""
    records = [{**record, "credit": credit(record)} for record in records if record["advantages"]]
    if any(abs(record["credit"][-1]) > ROUNDING for record in records):
        records = [{**record, "credit": ()} for record in records]
    return list(records)


def credit(record: Rollout) -> list[float]:
    """Return the credit of each turn; 0 for the answer turn if the method adds credit to the outcome's advantage."""
    outcome = record["outcome_advantage"] or 0.0
    return [advantage - outcome for advantage in record["advantages"]]


# ---- against the truth of the world


def _shares(records: Iterable[Rollout]) -> Found:
    uses = [useful_search(record) for record in records]
    for place in range(LOGGED_TURNS):
        known = [use for of_rollout in uses if (use := _nth(of_rollout, place)) is not None]
        if known:
            yield f"useful/share_turn_{place + 1}", float(np.mean(known))


def _nth(values: Numbers, place: int) -> float | None:
    return values[place] if place < len(values) else None


def aucs(records: Iterable[Rollout], name: str) -> Found:
    """Yield AUCs over all turns, by turn and by hops of the question: useful/auc/gains, useful/auc/gains_turn_2 ..."""
    beginning = f"useful/auc/{name}"
    groups: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        for place, use in enumerate(useful_search(record)[:LOGGED_TURNS]):
            value = of_tool_turn(record, name, place)
            if value is not None and use is not None:
                of_hops = [f"{beginning}/hops {record['hops']}"] if "hops" in record else []
                for group in (beginning, f"{beginning}_turn_{place + 1}", *of_hops):
                    groups.setdefault(group, ([], []))[0 if use else 1].append(value)
    for group, (above, below) in groups.items():
        found = auc(above, below)
        if found is not None:
            yield group, found


def auc(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Return the chance that one of the first exceeds one of the second, with ties as half; None without pairs.

    Example: 3, 1 and 2, 1 -> of four pairs 3 > 2, 3 > 1, 1 < 2, 1 = 1: 2.5 / 4 = 0.625
    """
    if not above or not below:
        return None
    smaller = np.sort(np.asarray(below))
    less = np.searchsorted(smaller, above, side="left")
    ties = np.searchsorted(smaller, above, side="right") - less
    return float((less + ties / 2).mean() / len(below))


# ---- similarity of turns


def similarity(records: Iterable[Rollout]) -> Found:
    """Yield the Jaccard similarity of calls in two rollouts of a prompt, at the same depth and across depths.

    Example: calls "mayor of Rome" and "mayor of Paris" -> 2 words of 4 are shared: 0.5
    """
    groups: dict[Any, list[list[set[str]]]] = {}
    for record in records:
        groups.setdefault((record["step"], record["round"], record["group"]), []).append(_words(record))
    found: dict[str, list[float]] = {}
    for rollouts in groups.values():
        for one, other in combinations(rollouts, 2):
            for (place, words), (place_of_other, words_of_other) in product(enumerate(one), enumerate(other)):
                if words and words_of_other:
                    alike = len(words & words_of_other) / max(len(words | words_of_other), 1)
                    if place != place_of_other:
                        found.setdefault("similarity/across_depths", []).append(alike)
                    else:
                        found.setdefault("similarity/same_depth", []).append(alike)
                        found.setdefault(f"similarity/turn_{place + 1}", []).append(alike)
    for name, values in found.items():
        yield name, float(np.mean(values))


def _words(record: Rollout) -> list[set[str]]:
    """The words in the calls of each turn; an empty set for a turn without calls."""
    turns = list(record.get("turns", ()))[:LOGGED_TURNS]
    texts = [" ".join(_said(call["arguments"]) for call in turn["calls"] or ()) for turn in turns]
    return [set(re.findall(r"\w+", text.lower())) for text in texts]


def _said(arguments: Any) -> str:
    return " ".join(map(str, arguments.values())) if isinstance(arguments, dict) else str(arguments)
