"""Pools of Python interpreters, for the tests of sessions and of the server."""

import pytest

from a2tgpo_trl.tools.python import levels
from a2tgpo_trl.tools.python.pool import Pool, Settings


@pytest.fixture(scope="module")
def level() -> str:
    """The strongest level that works here; escapes are tried at all levels elsewhere."""
    return levels.choose("auto")


@pytest.fixture
def make(level):
    """A function that makes pools, which are closed after the test."""
    made = []

    def pool(**changes) -> Pool:
        made.append(Pool(Settings(level, **{"warm": 0, **changes})))
        return made[-1]

    yield pool
    for one in made:
        one.close()
