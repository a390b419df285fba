"""seed -> entities -> facts -> documents, and questions over chains of facts.

A world is a graph: entities of four kinds, and one fact for each relation of an entity's kind. Each fact is one
document, among documents that say nothing useful. Names are two words from small pools, so that every name has
near-duplicates, and a search that leaves out the relation, or half a name, finds something else.

A world can be made harder to search: by relations that look alike ("the alleged mayor" beside "the mayor"), each with
its own facts, and by distractors, useless documents that rank before the fact that is searched for.

Names are split between the parts of a world in the same way for every seed (`PARTS`): no name occurs in two parts.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

from ..rng import Rng


# kind -> relation -> kind of the entity that it leads to
RELATIONS: dict[str, dict[str, str]] = {
    "person": {
        "mother": "person",
        "father": "person",
        "teacher": "person",
        "birthplace": "city",
        "employer": "company",
    },
    "company": {"founder": "person", "rival": "company", "seat": "city"},
    "city": {"mayor": "person", "country": "country"},
    "country": {"president": "person", "capital": "city"},
}
# A qualifier before a relation makes a different relation that looks alike and leads to the same kind.
QUALIFIERS = ("alleged", "former")
# Words in each of a kind's two pools of name words; entities of a kind in one part of a world.
POOL_SIZE = {"person": 64, "company": 40, "city": 40, "country": 24}
ENTITIES = {"person": 96, "company": 40, "city": 40, "country": 24}
QUESTION_WORDS = {"person": "Who", "company": "Which company", "city": "Which city", "country": "Which country"}

# Which part a name belongs to, by a number from 0 to 7 that is fixed for each pair of words. The shipped policy learnt
# from names of the third part, whose name is in the seed of its worlds: another name would make another policy. Few
# names are kept from it: with half of the pairs missing, it memorised the existing pairs and did not copy the others.
PARTS = {"train": (0,), "test": (1,), "school": (2, 3, 4, 5, 6, 7)}

# Empty documents on every entity. Shorter than a fact, so that a search for the bare name finds these first, and long
# enough that a search for a relation of that name finds the fact first.
EMPTY_DOCUMENTS = ("{name} is well known.", "People speak of {name}.")
# Empty documents on every relation, found by searches without a name.
EMPTY_DEFINITIONS = (
    "The word {relation}: how {relation} is used, and why {relation} is written so.",
    "Old and new {relation}, good and bad {relation}, and every other {relation}.",
)


@dataclass(frozen=True)
class Fact:
    """`relation` of `subject` is `object`."""

    subject: str
    relation: str
    object: str

    @property
    def document(self) -> str:
        return f"The {self.relation} of {self.subject} is {self.object}."


@dataclass(frozen=True)
class Distractor:
    """A document that names a relation and its subject, but not the fact, and names something else."""

    subject: str
    relation: str
    named: str

    @property
    def document(self) -> str:
        # Naming the relation twice ranks it before the fact, and before the facts of relations that look alike.
        return f"{self.relation}: {self.relation} of {self.subject}? Ask {self.named}."


@dataclass(frozen=True)
class Question:
    """A chain of facts, each about the entity that the previous one led to; its end is the answer."""

    chain: tuple[Fact, ...]

    @property
    def text(self) -> str:
        last = self.chain[-1].relation.split()[-1]  # without its qualifier
        kind = next(leads[last] for leads in RELATIONS.values() if last in leads)
        path = " of the ".join(fact.relation for fact in reversed(self.chain))
        return f"{QUESTION_WORDS[kind]} is the {path} of {self.chain[0].subject}?"

    @property
    def answer(self) -> str:
        return self.chain[-1].object


@dataclass(frozen=True)
class Part:
    """One closed part of a world: its facts lead only to its own entities."""

    entities: dict[str, str]  # name -> kind
    facts: dict[str, list[Fact]]  # name -> the facts about it
    distractors: list[Distractor] = field(default_factory=list)

    @property
    def documents(self) -> list[str]:
        said = [fact.document for facts in self.facts.values() for fact in facts]
        said += [text.format(name=name) for name in self.entities for text in EMPTY_DOCUMENTS]
        return said + [distractor.document for distractor in self.distractors]

    @property
    def telling(self) -> set[str]:
        """The documents that lead to another entity, rightly or wrongly."""
        facts = {fact.document for facts in self.facts.values() for fact in facts}
        return facts | {distractor.document for distractor in self.distractors}

    @cached_property
    def beside(self) -> dict[str, set[str]]:
        """name -> the names that occur in a document with it"""
        pairs = [(fact.subject, fact.object) for facts in self.facts.values() for fact in facts]
        pairs += [(distractor.subject, distractor.named) for distractor in self.distractors]
        together: dict[str, set[str]] = defaultdict(set)
        for one, other in pairs:
            together[one].add(other)
            together[other].add(one)
        return together

    def hides(self, chain: Sequence[Fact]) -> bool:
        """Whether no document names the end of a chain together with an entity from before its last fact.

        Example: A -> B -> C is hidden unless a document names both A and C
        """
        return not any(chain[-1].object in self.beside[fact.subject] for fact in chain[:-1])

    def question(
        self, hops: int, rng: Rng, fits: Callable[[list[Fact]], bool] = lambda chain: True, *, circle: bool = False
    ) -> Question:
        """A chain of `hops` facts that fits and visits no entity twice; a circle ends where it begins."""
        names = list(self.entities)
        while True:
            start = here = rng.choice(names)
            chain, seen = [], {start}
            for _ in range(hops):
                fact = rng.choice(self.facts[here])
                chain.append(fact)
                here = fact.object
                seen.add(here)
            if len(seen) == hops + (not circle) and (here == start) == circle and fits(chain):
                return Question(tuple(chain))


@cache
def name_pools() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """kind -> first and second words of its names: invented, all different, the same for every world."""
    rng = Rng("names")
    consonants, vowels, ends = "bdfgklmnprstvz", "aeiou", ("n", "r", "l", "s", "th", "m", "x", "")
    taken: set[str] = set()

    def word() -> str:
        while True:
            syllables = "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(2))
            made = (syllables + rng.choice(ends)).capitalize()
            if made.lower() not in taken:
                taken.add(made.lower())
                return made

    return {
        kind: (tuple(word() for _ in range(size)), tuple(word() for _ in range(size)))
        for kind, size in POOL_SIZE.items()
    }


@cache
def names(kind: str, part: str) -> list[str]:
    """All names of a kind that belong to a part."""
    firsts, seconds = name_pools()[kind]
    pairs = [f"{first} {second}" for first in firsts for second in seconds]
    rng = Rng("parts", kind)
    return [pair for pair in pairs if rng.below(8) in PARTS[part]]


def relations_of(kind: str, alike: int) -> dict[str, str]:
    """The relations of a kind and the kinds they lead to, with `alike` similar relations for each.

    Example: city, 1 -> mayor, country, alleged mayor, alleged country
    """
    plain = RELATIONS[kind]
    return plain | {f"{word} {relation}": leads for word in QUALIFIERS[:alike] for relation, leads in plain.items()}


def make_part(part: str, seed: object, alike: int = 0, distractors: int = 0) -> Part:
    """Draw one part of a world, with `alike` similar relations and `distractors` for each plain relation."""
    rng = Rng("world", part, seed)
    drawn = {kind: rng.sample(names(kind, part), size) for kind, size in ENTITIES.items()}
    facts: dict[str, list[Fact]] = {name: [] for of_kind in drawn.values() for name in of_kind}
    for kind in RELATIONS:
        for relation, leads in relations_of(kind, alike).items():
            for subject, target in zip(drawn[kind], _targets(drawn[kind], drawn[leads], rng), strict=True):
                facts[subject].append(Fact(subject, relation, target))
    entities = {name: kind for kind, of_kind in drawn.items() for name in of_kind}
    return Part(entities, facts, _distractors(entities, distractors, Rng("distractors", part, seed)))


def _distractors(entities: dict[str, str], number: int, rng: Rng) -> list[Distractor]:
    """Draw `number` distractors for each relation of each entity. The entity that they name is of another kind.

    An entity of the same kind would have the same relation, and the distractor would rank high in a search for that.
    """
    others = {kind: [name for name in entities if entities[name] != kind] for kind in RELATIONS}
    return [
        Distractor(name, relation, rng.choice(others[kind]))
        for name, kind in entities.items()
        for relation in RELATIONS[kind]
        for _ in range(number)
    ]


def _targets(subjects: list[str], candidates: list[str], rng: Rng) -> list[str]:
    """The entity that each subject's fact leads to: within a kind one to one and never to itself, else any.

    One to one, because "the mother of A is B" fits a search for B's mother as well as the right fact does: one such
    document may be found with it, but not two.
    """
    if subjects is not candidates:
        return [rng.choice(candidates) for _ in subjects]
    ring = rng.sample(subjects, len(subjects))
    follows = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return [follows[subject] for subject in subjects]


def library(parts: list[Part], seed: object) -> list[str]:
    """All documents of these parts of a world, in a random order."""
    definitions = [
        text.format(relation=relation)
        for leads in RELATIONS.values()
        for relation in leads
        for text in EMPTY_DEFINITIONS
    ]
    documents = definitions + [text for part in parts for text in part.documents]
    return Rng("library", seed).sample(documents, len(documents))
