"""Which batches are recorded, and shown to trackers."""

import pytest

from a2tgpo_trl.recording import Schedule


@pytest.mark.parametrize(
    ("steps", "due"),
    [
        (range(0, 18, 2), [0, 6, 10, 16]),  # those of the docstring
        (range(0, 12), [0, 5, 10]),
        (range(7, 18, 2), [11, 15]),  # resumed: as if it had never stopped, but for what was made before
    ],
)
def test_the_first_batch_after_each_multiple_is_due(steps, due):
    schedule, found = Schedule(5), []
    for step in steps:
        if schedule.is_due(step):
            found.append(step)
            schedule.pass_over(step)
    assert found == due
