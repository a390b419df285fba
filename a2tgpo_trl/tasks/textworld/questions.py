"""a house -> questions on it, in the style of QAit (arXiv 1908.10909), each with its answer and a walk that finds it.

    location    Where is the peanut?                  what it is in or on; or the room, if it lies there
    existence   Is there any peanut in the house?     yes or no
    edible      Is the peanut edible?                 yes or no; found by trying

Answers are facts of the game. `moves` is the number of commands of a shortest walk after which the thing has been
seen. It is None for a thing that does not exist: the walk to the answer "no" goes everywhere and opens everything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..rng import Rng
from .games import CARRIED, House, Scene
from .walks import past_everything, to_see


KINDS = ("location", "existence", "edible")
TEXTS = {
    "location": "Where is the {thing}?",
    "existence": "Is there any {thing} in the house?",
    "edible": "Is the {thing} edible?",
}


@dataclass(frozen=True)
class Question:
    """A question on a house."""

    kind: str
    thing: str
    answer: str
    moves: int | None
    walk: tuple[str, ...]  # commands after which the answer is known

    @property
    def text(self) -> str:
        return TEXTS[self.kind].format(thing=self.thing)

    def fits(self, kind: str, moves: int, answer: str | None) -> bool:
        """Whether the question has this kind, length and answer; None stands for any answer."""
        return self.kind == kind and self.moves in (moves, None) and answer in (self.answer, None)


def questions(house: House, other: House, kinds: Sequence[str], rng: Rng) -> Iterator[Question]:
    """All questions of these kinds on a house whose answers are not seen from the start, in a random order.

    `other` provides the names of things that do not exist.
    """
    start = house.start
    there = [thing for thing in start.things() if to_see(start, thing)]
    absent = [thing for thing in other.start.things() if thing not in start.kinds]
    found = [_on(kind, start, thing) for kind in kinds for thing in there]
    if "existence" in kinds:
        found += [Question("existence", thing, "no", None, tuple(past_everything(start))) for thing in absent]
    yield from rng.sample(found, len(found))


def _on(kind: str, start: Scene, thing: str) -> Question:
    walk = to_see(start, thing)
    moves = len(walk)
    if kind == "location":
        answer = start.where[thing]
    elif kind == "existence":
        answer = "yes"
    else:
        answer = "yes" if thing in start.edible else "no"
        walk = [*walk, f"take {thing}", f"eat {thing}"]
    assert answer != CARRIED and moves
    return Question(kind, thing, answer, moves, tuple(walk))
