"""Attempts to get out of a Python session, at every level of isolation that works here.

Attempts that a level does not stop are expected to succeed, and must be listed in the documentation: both follow from
`levels.THREATS`.
"""

import platform

import pytest
from python_attempts import ATTEMPTS
from python_world import KINDS, NAMES, NotHere, World

import a2tgpo_trl.tools.python as python_tool
from a2tgpo_trl.tools.python.levels import LEVELS, THREATS, WEAK


# Daily, one level as the user who runs the tests. The others are slow, as is an ordinary user if that user is root.
EVERY_DAY = ("bubblewrap", None)
PARAMS = [pytest.param(kind, marks=() if kind == EVERY_DAY else pytest.mark.slow) for kind in KINDS]


@pytest.fixture(scope="module", params=PARAMS, ids=NAMES)
def world(request):
    try:
        made = World(*request.param)
    except NotHere as why:
        pytest.skip(f"{request.param[0]}: {why}")
    yield made
    made.close()


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_escape_attempts_succeed_only_where_documented(attempt, world):
    if attempt.machine not in (None, platform.machine()):
        pytest.skip(f"its numbers of system calls are those of {attempt.machine}")
    world.begin()
    try:
        found = world.try_out(attempt.code, attempt.timeout)
        succeeded = attempt.seen(world, found) if attempt.seen else "ESCAPED" in found.text
    finally:
        world.end()
    threat = THREATS[attempt.threat]
    documented = world.column in threat.not_stopped_at
    assert succeeded == documented or (documented and attempt.may_fail), found


def test_the_documentation_has_a_row_for_each_threat_and_each_threat_an_attempt():
    rows = python_tool.__doc__.splitlines()
    for threat in THREATS.values():
        (row,) = [row for row in rows if row.startswith(threat.what)]
        marks = row.removeprefix(threat.what).replace("NOT STOPPED", "not").split()
        assert marks == ["not" if level in threat.not_stopped_at else "stopped" for level in (LEVELS[0], *WEAK)]
    assert {attempt.threat for attempt in ATTEMPTS} == set(THREATS)
    assert len({attempt.name for attempt in ATTEMPTS}) == len(ATTEMPTS) >= 40
