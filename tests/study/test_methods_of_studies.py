"""The credit methods that exist only for studies (`recipes/study/*.py`)."""

import math
from dataclasses import replace

import torch
from places import ROOT

from a2tgpo_trl.credit import find_method
from a2tgpo_trl.credit.method import Evidence, preset_of


FOLDER = ROOT / "recipes" / "study"
GAINS = [[1.0, 5.0], [3.0, math.nan], [4.0, 2.0], [6.0, math.nan]]


def evidence(**values):
    outcomes = torch.tensor([1.0, 0.0, 0.0, 0.0])
    found = Evidence(
        gains_NK=torch.tensor([[*row, math.nan] for row in GAINS]),
        turn_rewards_NK=torch.full((4, 3), math.nan),
        outcomes_N=outcomes,
        outcome_advantages_N=outcomes - 0.25,
        num_turns_N=torch.tensor([3, 2, 3, 2]),
        group_ids_N=torch.tensor([0, 0, 1, 1]),
    )
    return replace(found, **values)


def test_depth_only_credits_a_turn_by_the_mean_gain_of_its_depth_in_its_prompt():
    method = find_method(f"{FOLDER}/depth_only.py:a2tgpo_depth_only")
    switches = preset_of(method).switches
    assert (switches.gain_normalization, switches.gain_weight) == ("pooled", 0.3)
    # Of the first prompt: 2 and 2 at the first depth, 5 at the second. Of the other: 5 and 5, then 2.
    by_hand = torch.tensor(
        [[2.0, 5.0, math.nan], [2.0, math.nan, math.nan], [5.0, 2.0, math.nan], [5.0, *[math.nan] * 2]]
    )
    expected = find_method("a2tgpo")(evidence(gains_NK=by_hand), switches)
    assert torch.equal(method(evidence(), switches), expected)
    # The credit of a first turn does not depend on what it gained itself, only on how many turns follow.
    found = method(evidence(), switches) - evidence().outcome_advantages_N.unsqueeze(1)
    assert found[0, 0] > found[1, 0] and found[2, 0] < found[3, 0]


def test_without_the_floor_gains_are_as_exact_as_in_float32():
    method = find_method(f"{FOLDER}/no_floor.py:a2tgpo_no_floor")
    switches = preset_of(method).switches
    with_floor, without = evidence(gain_floor=10.0), evidence()
    assert torch.equal(method(with_floor, switches), find_method("a2tgpo")(without, switches))
    assert not torch.equal(method(with_floor, switches), find_method("a2tgpo")(with_floor, switches))
