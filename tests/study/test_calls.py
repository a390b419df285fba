"""What a report says about whether to call at all."""

import pytest

from a2tgpo_trl.study.calls import calls_table
from a2tgpo_trl.study.results import Results
from a2tgpo_trl.study.study import Run


SHARE, Z, GAIN = "calls/share_of_0", "by_turn/scores/mean_turn_1", "by_turn/gains/mean_turn_1"
CALLS = "by_turn/scores/number_turn_1"


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "study.parquet")


def test_calls_table_shows_shares_without_calls_and_first_call_gains(results):
    # Over two seeds: 0.2 and 0.4 up to step 10, 0.5 and 0.7 up to step 20. One seed has z-scores: of 24 calls 0.2 on
    # average, then 0.4 of 8.
    of_calls = [(10, Z, 0.2), (20, Z, 0.4), (10, CALLS, 24.0), (20, CALLS, 8.0)]
    results.put(Run("a2tgpo", 0), "identity", [(10, SHARE, 0.2), (20, SHARE, 0.5), *of_calls])
    results.put(Run("a2tgpo", 1), "identity", [(10, SHARE, 0.4), (20, SHARE, 0.7)])
    results.put(Run("grpo", 0), "identity", [(10, SHARE, 0.0)])  # it ended there, and has no gains
    runs = {"grpo": [Run("grpo", 0)], "a2tgpo": [Run("a2tgpo", 0), Run("a2tgpo", 1)]}
    lines = calls_table(results, runs)
    head = next(line for line in lines if line.startswith("| cell"))
    assert [name.strip() for name in head.split("|")[1:-1]] == [
        *("cell", "without a call, up to step 10", "without a call, up to step 20"),
        *("gain of a first call", "its z-score", "its credit"),
    ]
    (grpo, ours) = ([part.strip() for part in line.split("|")[2:-1]] for line in lines[-3:-1])
    assert grpo == ["0.000", "", "", "", ""]
    assert [part.split(" ")[0] for part in ours] == ["0.300", "0.600", "", "0.250", ""]


def test_calls_table_is_omitted_if_nearly_every_rollout_calls(results):
    results.put(
        Run("grpo", 0), "identity", [(10, SHARE, 0.04), (20, SHARE, 0.0), (10, GAIN, 1.0)]
    )  # one in twenty-five
    assert calls_table(results, {"grpo": [Run("grpo", 0)]}) == []
    assert calls_table(results, {}) == []
