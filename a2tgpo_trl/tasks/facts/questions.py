"""countries -> passages to search, and questions of one and two hops.

What is the currency of Kenya?                                      one hop
What is the currency of the country whose capital is Nairobi?       two: the country must be found first
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .countries import RELATIONS, Country, Relation


PROSE_WORDS = 25  # of each text that is not a fact


@dataclass(frozen=True)
class Question:
    """`needed` are the facts that lead to the answer, in the passages' words."""

    text: str
    answers: tuple[str, ...]
    relation: str
    needed: tuple[str, ...]

    @property
    def hops(self) -> int:
        return len(self.needed)


def passages(countries: Sequence[Country]) -> list[str]:
    """Each fact separately, and the Factbook's longer texts on each country.

    Example: "The capital of Austria is Vienna.", "Austria, climate: temperate; continental, cloudy; cold winters ..."
    """
    texts = []
    for country in countries:
        texts += [fact(country, relation) for relation in country.relations]
        texts += [f"{country.name}, {subject}: {_cut(text)}" for subject, text in country.prose]
    return texts


def fact(country: Country, relation: Relation) -> str:
    return relation.states.format(country=country.name, value=country.value(relation))


def _cut(text: str) -> str:
    words = text.split()
    return " ".join(words[:PROSE_WORDS]) + (" ..." if len(words) > PROSE_WORDS else "")


def questions(countries: Sequence[Country], hops: int, telling: "Telling") -> list[Question]:
    """All questions on these countries, except those that contain the answer: the capital of Djibouti is Djibouti."""
    asked = []
    for country in countries:
        for relation in country.relations:
            clues = [clue for clue in telling.clues(country) if clue != relation] if hops == 2 else [None]
            asked += [_question(relation, country, clue) for clue in clues]
    return [one for one in asked if not re.search(rf"(?<!\w){re.escape(one.answers[0])}(?!\w)", one.text)]


def _question(relation: Relation, country: Country, clue: Relation | None) -> Question:
    named = country.name if clue is None else clue.names.format(value=country.value(clue))
    return Question(
        text=relation.asks.format(country=named),
        answers=country.facts[relation.name],
        relation=relation.name,
        needed=tuple(fact(country, one) for one in (clue, relation) if one is not None),
    )


class Telling:
    """Which facts distinguish a country from all others."""

    def __init__(self, countries: Sequence[Country]):
        self._shared = {
            one.name: Counter(country.value(one) for country in countries if one.name in country.facts)
            for one in RELATIONS
        }

    def clues(self, country: Country) -> list[Relation]:
        """Relations for which no other country has the same value.

        Example: of Austria its capital, but not its currency, the euro
        """
        return [one for one in country.relations if self._shared[one.name][country.value(one)] == 1]
