"""a house -> a game that is played by commands: an environment with one tool.

TextWorld's rules say which commands work, and what they do. This module writes the observations, one sentence for each
thing: TextWorld's own texts are longer, and need a game that is compiled to a file, and an interpreter for it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .games import CARRIED, CONTAINER, DOOR, SUPPORTER, House, Scene, library, scene


ARTICLES = {"the", "a", "an"}


class Play:
    """One game, being played.

    Example: "open box" -> "You open box.", "The key is in the box."; "open bxo" -> "You cannot open bxo."
    """

    def __init__(self, houses: Mapping[str, House]):
        self._houses = houses

    def reset(self, game: str, **row: Any) -> None:
        """The house of this name, from its start."""
        self._game = self._houses[game].game
        generator = library().generator
        self._progress = generator.game.GameProgression(self._game, track_quests=False)
        self._commands = generator.inform7.Inform7Game(self._game).gen_commands_from_actions

    def act(self, command: str) -> str:
        """Do something in the house.

        Args:
            command: look, inventory, go DIRECTION, open THING, examine THING, take THING, eat THING, ...

        Returns:
            What comes of it.
        """
        before = scene(self._game, self._progress.state.facts)
        asked = normal(command)
        possible = self._progress.valid_actions
        for text, action in zip(self._commands(possible), possible, strict=True):
            if normal(text) == asked or normal(text).startswith(f"{asked} from "):  # "take key" from wherever it is
                self._progress.update(action)
                return "\n".join(outcome(before, scene(self._game, self._progress.state.facts), text))
        return refusal(before, asked)


def play(houses: Mapping[str, House]) -> Callable[[], Play]:
    """An `environment_factory`. The column `game` of a row names its house."""
    return partial(Play, houses)


def normal(command: str) -> str:
    """A command without articles and capitals. Example: " Open the Box" -> "open box" """
    return " ".join(word for word in command.lower().split() if word not in ARTICLES)


def refusal(now: Scene, asked: str) -> str:
    """The reply to a command that fails. Only carried things can be eaten, so that a refusal is informative."""
    if not asked:
        return "Say what to do."
    verb, _, thing = asked.partition(" ")
    carried = {normal(name) for name in now.inside(CARRIED)}
    if verb == "eat" and thing not in carried:
        return f"You do not carry {thing}."
    return f"You cannot {asked}."


# ---- what the player sees


def view(now: Scene) -> list[str]:
    """What the player sees, in sentences: the room, the things in it, and the ways out."""
    told = [f"You are in the {now.here}."]
    for name in now.inside(now.here):
        told += about(now, name)
    free, closed = [], []
    for direction, (_, door) in now.exits[now.here].items():
        if door in now.closed:
            closed.append(f"The {door} to the {direction} is closed.")
        else:
            free.append(direction)
    return told + ([f"You can go {', '.join(free)}."] if free else []) + closed


def about(now: Scene, name: str) -> list[str]:
    """What the player sees of an entity: the things in or on it, or where it is.

    Example: a box with a key -> "The key is in the box."; an empty one -> "The box is empty."
    """
    kind = now.kinds[name]
    if name in now.closed:
        return [f"The {name} is closed."]
    if kind == DOOR:
        return [f"The {name} is open."]
    if kind in (CONTAINER, SUPPORTER):
        return [_place(now, thing) for thing in now.inside(name)] or [f"The {name} is empty."]
    return [_place(now, name)]


def _place(now: Scene, thing: str) -> str:
    holder = now.where[thing]
    if holder == CARRIED:
        return f"You carry the {thing}."
    return f"The {thing} is {'on' if now.kinds[holder] == SUPPORTER else 'in'} the {holder}."


def outcome(before: Scene, now: Scene, command: str) -> list[str]:
    """The reply to a command that worked, in sentences."""
    verb, _, rest = command.partition(" ")
    if verb in ("go", "look"):
        return view(now)
    if verb == "inventory":
        return [_place(now, thing) for thing in now.inside(CARRIED)] or ["You carry nothing."]
    if verb == "examine":
        return about(now, rest)
    opened = rest if verb == "open" and now.kinds[rest] == CONTAINER else None
    return [f"You {command}.", *(about(now, opened) if opened else ())]
