"""part, seed and number -> a game of TextWorld, made in memory: a house with rooms, doors and things.

TextWorld draws the map, places the things and names everything; its rules say what a command does. The place of a
thing is a fact of the game and not read from a text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any

from numpy.random import RandomState

from ..rng import Rng


INSTALL = (
    "The task textworld makes its games with a package that is not installed: pip install 'a2tgpo_trl[textworld]'. "
    "A part of it, jericho, is compiled during installation, which needs gcc and make."
)
DIRECTIONS = ("north", "east", "south", "west")
CARRIED = "you"  # the place of a thing that the player carries
# TextWorld's letters for kinds of entities.
PLAYER, ROOM, DOOR, CONTAINER, SUPPORTER, FOOD, OBJECT = "P", "r", "d", "c", "s", "f", "o"


@dataclass(frozen=True)
class Size:
    """The number of rooms and other entities in a house."""

    rooms: int = 4
    containers: int = 4
    supporters: int = 2
    things: int = 8


@dataclass(frozen=True)
class Scene:
    """The state of a game at one moment, all by name.

    Example: here "cellar", exits {"cellar": {"north": ("bar", "gate")}}, where {"box": "cellar", "key": "box"},
    closed {"gate"}
    """

    here: str
    kinds: Mapping[str, str]  # of everything, in a fixed order
    exits: Mapping[str, Mapping[str, tuple[str, str | None]]]  # room -> direction -> next room, and door between
    where: Mapping[str, str]  # entity -> room, container or supporter, or CARRIED
    closed: frozenset[str]  # doors and containers
    edible: frozenset[str]

    def inside(self, holder: str) -> list[str]:
        """The entities in or on `holder`."""
        return [name for name in self.kinds if self.where.get(name) == holder]

    def things(self) -> list[str]:
        """The things that can be carried."""
        return [name for name, kind in self.kinds.items() if kind in (FOOD, OBJECT)]


@dataclass(frozen=True)
class House:
    """A game before the first move, and its first scene."""

    game: Any = field(repr=False)
    start: Scene


def make_house(part: str, seed: object, number: int, size: Size = Size()) -> House:
    """Make the game with this number in a part ("train", "test", "school"): the same on every machine."""
    rng = Rng("textworld", part, seed, number)
    game = _game(rng, size)
    return House(game, scene(game, game.world.facts))


def scene(game: Any, facts: Any) -> Scene:
    """The scene that these facts describe: TextWorld propositions over the entities of a game."""
    names = {entity: str(info.name or CARRIED) for entity, info in game.infos.items()}
    kinds = {str(info.name): str(info.type) for info in game.infos.values() if info.name}
    doors, ways, where = {}, [], {}
    here, closed, edible = "", set(), set()
    for fact in facts:
        name, arguments = str(fact.name), [names[argument.name] for argument in fact.arguments]
        if name == "link":
            doors[arguments[0], arguments[2]] = arguments[1]
        elif name.removesuffix("_of") in DIRECTIONS:
            ways.append((arguments[1], name.removesuffix("_of"), arguments[0]))  # north_of(a, b): a is north of b
        elif name == "at" and fact.arguments[0].type == PLAYER:
            here = arguments[1]
        elif name in ("at", "in", "on"):
            where[arguments[0]] = arguments[1]
        elif name == "closed":
            closed.add(arguments[0])
        elif name == "edible":
            edible.add(arguments[0])
    exits: dict[str, dict[str, tuple[str, str | None]]] = {name: {} for name, kind in kinds.items() if kind == ROOM}
    for origin, direction, behind in sorted(ways, key=lambda way: DIRECTIONS.index(way[1])):
        exits[origin][direction] = (behind, doors.get((origin, behind)))
    return Scene(here, kinds, exits, where, frozenset(closed), frozenset(edible))


@cache
def library() -> Any:
    """TextWorld's modules, imported when the first game is made."""
    if find_spec("textworld") is None:
        raise ValueError(INSTALL)
    import textworld.generator
    import textworld.generator.inform7
    import textworld.logic

    return textworld


def _game(rng: Rng, size: Size) -> Any:
    textworld = library()
    generator, logic = textworld.generator, textworld.logic
    drawn = RandomState(rng.below(2**31))
    world = generator.World.from_map(generator.make_map(size.rooms, rng=drawn, possible_door_states=["closed"]))
    world.set_player_room()
    kinds = [CONTAINER] * size.containers + [SUPPORTER] * size.supporters
    kinds += [FOOD if i % 2 else OBJECT for i in range(size.things)]
    entities = [logic.Variable(f"{kind}_{i}", kind) for i, kind in enumerate(kinds)]
    world.populate_with(rng.sample(entities, len(entities)), rng=drawn)
    facts = [_unlocked(fact, logic) for fact in world.facts]
    facts += [logic.Proposition("edible", [entity]) for entity in entities if entity.type == FOOD]
    game = generator.Game(generator.World.from_facts(facts))
    _name(game, generator.Grammar({"theme": "house"}, drawn), rng)
    return game


def _unlocked(fact: Any, logic: Any) -> Any:
    """Turn a locked entity into a closed one, because there are no keys here."""
    return logic.Proposition("closed", fact.arguments) if fact.name == "locked" else fact


def _name(game: Any, grammar: Any, rng: Rng) -> None:
    """Give everything a name from TextWorld's words for a house, each only once in a game.

    Names fit the kind of room that an entity is in. Names of things that can be carried are shuffled, so that a name
    does not tell where its thing is, or whether it can be eaten.
    """
    used: set[str] = set()

    def give(entity: Any, kind_of_room: str) -> None:
        name, _, _ = grammar.generate_name(entity.type, room_type=kind_of_room, exclude=used)
        game.infos[entity.id].name = name
        used.add(name)

    for room in game.world.rooms:
        kind_of_room = grammar.expand("#room_type#")
        for entity in [room, *room.doors.values(), *game.world.get_all_objects_in(room)]:
            if game.infos[entity.id].name is None and entity.type != PLAYER:
                give(entity, kind_of_room)
    things = [info for info in game.infos.values() if info.type in (FOOD, OBJECT)]
    for info, name in zip(things, rng.sample([info.name for info in things], len(things)), strict=True):
        info.name = name
