import pytest
import torch

from a2tgpo_trl.information_gain.metrics import gain_metrics
from a2tgpo_trl.loss import ratio_metrics, ratio_sums
from a2tgpo_trl.rollout.rounds import over_rounds
from a2tgpo_trl.turns import LOGGED_TURNS, turn_metrics


NAN = float("nan")


def test_gain_metrics_of_three_rollouts_in_two_groups():
    # Values    -4 -3 -1      gains 1 2        group 0
    #           -4 -5          gain -1          group 0
    #           -2 -2          gain  0          group 1
    values = torch.tensor([[-4, -3, -1], [-4, -5, NAN], [-2, -2, NAN]])
    gains = torch.tensor([[1, 2, NAN], [-1, NAN, NAN], [0, NAN, NAN]])
    scale = torch.tensor([[1.2, 1.0, 1.0], [0.8, 1.0, 1.0], [1.0, 1.0, 1.0]])
    metrics = gain_metrics(values, gains, scale, torch.tensor([4, 4, 9]))
    expected = {
        "gain/mean": 0.5,  # (1 + 2 - 1 + 0) / 4
        "gain/std": 1.25**0.5,
        "gain/share_positive": 0.5,
        "gain/turn_1/mean": 0.0,
        "gain/turn_1/share_positive": 1 / 3,
        "gain/turn_2/mean": 2.0,
        "gain/turn_2/std": 0.0,
        "value/before": -10 / 3,
        "value/after": -8 / 3,  # (-1 - 5 - 2) / 3
        "value/after_turn_1": -10 / 3,
        "value/after_turn_2": -1.0,
        "clip_scale/mean": 1.0,
        "clip_scale/turn_1": 1.0,
        "turns/singleton_cells": 2 / 3,  # turn 1 of group 9 and turn 2 of group 4, of three cells
        "turns/survivors_turn_1": 1.5,  # 2 and 1 rollouts
        "turns/survivors_turn_2": 0.5,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert not any("turn_3" in name for name in metrics)


def test_metrics_of_unknown_gains_are_left_out():
    metrics = gain_metrics(torch.tensor([[-1.0, NAN]]), torch.tensor([[NAN]]), torch.ones(1, 1), torch.tensor([0]))
    assert metrics == {"value/before": -1.0, "value/after": -1.0}


def test_ratio_metrics_are_averages_over_turns():
    # Rollout 0: turn 0 of two tokens (ratios 1.0, 1.2), turn 1 of one (0.5). Rollout 1: turn 0 of one token (2.0).
    turn = torch.tensor([[0, 0, -1, 1], [0, -1, -1, -1]])
    ratio = torch.tensor([[1.0, 1.2, 99.0, 0.5], [2.0, 99.0, 99.0, 99.0]])
    advantages = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    tenth = torch.full((2, 4), 0.1)
    metrics = ratio_metrics(ratio_sums(ratio, advantages, tenth, tenth, turn, num_turns=3))
    assert metrics == pytest.approx(
        {
            "turn_ratio/mean": (1.1 + 0.5 + 2.0) / 3,
            "turn_ratio/turn_1": (1.1 + 2.0) / 2,
            "turn_ratio/turn_2": 0.5,
            "clip_fraction/mean": (0.5 + 0 + 1) / 3,  # one of two tokens; none, as the ratio is low and A > 0; all
            "clip_fraction/turn_1": 0.75,
            "clip_fraction/turn_2": 0.0,
        }
    )
    assert ratio_metrics(torch.zeros(3, 2)) == {}


def test_only_the_first_turns_are_logged_by_index():
    turns = LOGGED_TURNS + 3
    values, gains = torch.zeros(2, turns + 1), torch.zeros(2, turns)
    metrics = gain_metrics(values, gains, torch.ones(2, turns), torch.tensor([0, 0]))
    assert f"gain/turn_{LOGGED_TURNS}/mean" in metrics and f"gain/turn_{LOGGED_TURNS + 1}/mean" not in metrics


def test_turn_metrics_are_mean_and_maximum():
    assert turn_metrics(torch.tensor([1, 4, 0, 3])) == {"turns/mean": 2.0, "turns/max": 4.0}


def test_rounds_of_unlike_size_weigh_by_their_rollouts():
    first = {"reward": 0.375, "completions/max_length": 9.0, "gain/seconds": 2.0, "completions/min_length": 3.0}
    again = {"reward": 0.0, "completions/max_length": 5.0, "gain/seconds": 1.0, "completions/min_length": 2.0}
    first["states/seconds"], again["states/seconds"] = 1.0, 0.5
    # 16 and twice 4 rollouts: 16 x 0.375 / 24 = 0.25. Only the last round has gains; its reward_std is NaN.
    last = {**again, "gain/mean": 0.5, "reward_std": NAN}
    assert over_rounds([(16, first), (4, again), (4, last)]) == pytest.approx(
        {
            "reward": 0.25,
            "completions/max_length": 9.0,
            "completions/min_length": 2.0,
            "gain/seconds": 4.0,
            "states/seconds": 2.0,
            "gain/mean": 0.5,
        }
    )
