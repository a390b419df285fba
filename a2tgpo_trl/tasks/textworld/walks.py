"""a house -> shortest walks in it: commands that lead to where a thing is seen, or past everything in it.

A walk cannot undo anything that it needs (doors and containers stay open), so Dijkstra's search over rooms finds a
shortest one; a closed door costs one more command.
"""

import heapq
from collections.abc import Sequence

from .games import CARRIED, CONTAINER, Scene


def to_see(scene: Scene, thing: str) -> list[str]:
    """The commands of a shortest walk after which the thing has been seen. Empty if it is seen from the start.

    Example: the key is in a closed box in the bar, behind a closed gate -> open gate, go north, open box
    """
    holder = scene.where[thing]
    if holder == CARRIED:
        return []
    room = scene.where.get(holder, holder)
    walk = _way(scene, scene.here, room, scene.closed)
    return walk + [f"open {holder}"] * (holder in scene.closed)


def past_everything(scene: Scene) -> list[str]:
    """A walk into every room that opens every container, always going to the nearest room that is left."""
    here, closed, walk = scene.here, set(scene.closed), []
    left = set(scene.exits) - {here}
    while True:
        for container in _containers(scene, here):
            if container in closed:
                walk.append(f"open {container}")
        ways = [_way(scene, here, room, closed) for room in scene.exits if room in left]
        if not ways:
            return walk
        commands = min(ways, key=len)
        closed -= {command.removeprefix("open ") for command in commands}
        walk += commands
        here = _end(scene, here, commands)
        left -= {here}


def _containers(scene: Scene, room: str) -> list[str]:
    return [name for name in scene.inside(room) if scene.kinds[name] == CONTAINER]


def _end(scene: Scene, here: str, commands: Sequence[str]) -> str:
    for command in commands:
        if command.startswith("go "):
            here = scene.exits[here][command.removeprefix("go ")][0]
    return here


def _way(scene: Scene, start: str, goal: str, closed: frozenset[str] | set[str]) -> list[str]:
    """The commands of a shortest way from one room to another."""
    waiting: list[tuple[int, int, str, list[str]]] = [(0, 0, start, [])]
    seen: set[str] = set()
    pushed = 0
    while waiting:
        _, _, room, commands = heapq.heappop(waiting)
        if room == goal:
            return commands
        if room in seen:
            continue
        seen.add(room)
        for direction, (behind, door) in scene.exits[room].items():
            more = [f"open {door}"] * (door in closed) + [f"go {direction}"]
            pushed += 1  # among ways of equal length, the first found is taken
            heapq.heappush(waiting, (len(commands) + len(more), pushed, behind, commands + more))
    raise AssertionError(f"no way from {start} to {goal}")  # TextWorld's maps are connected
