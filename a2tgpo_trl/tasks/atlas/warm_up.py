"""searches of a world -> a search for each rollout, whose first calls find nothing useful.

Turns that every rollout must make, and gains nothing by, do not tell rollouts apart: a comparison of turns at the same
depth has nothing to blame there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any


class WarmingSearch:
    """An environment with one tool, which counts the calls of its rollout.

    Example (warm_up 1): "mayor of Rome" -> "Rome is well known."; again -> "The mayor of Rome is A B."
    """

    def __init__(self, search: Callable[[str], str], without_facts: Callable[[str], str], warm_up: int):
        self._search, self._without_facts, self._warm_up = search, without_facts, warm_up
        self._calls = 0

    def reset(self, **row: Any) -> None:
        self._calls = 0

    def search(self, query: str) -> str:
        """Search the encyclopedia.

        Args:
            query: What to look for.

        Returns:
            The documents that fit best.
        """
        self._calls += 1
        return self._without_facts(query) if self._calls <= self._warm_up else self._search(query)


def warming_search(
    search: Callable[[str], str], without_facts: Callable[[str], str], warm_up: int
) -> Callable[[], WarmingSearch]:
    """An `environment_factory`."""
    return partial(WarmingSearch, search, without_facts, warm_up)
