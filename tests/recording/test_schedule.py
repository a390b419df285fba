"""Which batches are recorded, and shown to trackers."""

import pytest

from a2tgpo_trl.recording import Schedule


@pytest.mark.parametrize(
    ("stride", "steps", "due"),
    [
        (2, range(0, 18, 2), [0, 6, 10, 16]),  # as in the docstring
        (2, range(6, 18, 2), [6, 10, 16]),  # resumed: as if it had never stopped
        (2, range(8, 18, 2), [10, 16]),
        (1, range(0, 12), [0, 5, 10]),
        (7, range(0, 30, 7), [0, 7, 14, 21, 28]),
    ],
)
def test_the_first_batch_after_each_multiple_is_due(stride, steps, due):
    assert [step for step in steps if Schedule(5, stride).is_due(step)] == due
