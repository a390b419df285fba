import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import NAN, assert_near

from a2tgpo_trl.credit import a2tgpo_credit, clip_scale, discounted_sum, pooled_zscore, turn_group_zscore


ZSCORES = [turn_group_zscore, pooled_zscore]
DTYPES = {torch.float32: 2e-3, torch.bfloat16: 5e-2}  # tolerance on scores of order 1


@st.composite
def gain_tables(draw, most_groups=3):
    """Gains of order 1 with holes, and group numbers that are neither sorted nor contiguous."""
    rollouts, turns = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    cell = st.one_of(st.just(NAN), st.integers(-40, 40).map(lambda x: x / 8))
    gains = draw(st.lists(st.lists(cell, min_size=turns, max_size=turns), min_size=rollouts, max_size=rollouts))
    names = st.sampled_from([7, -3, 100][:most_groups])
    groups = draw(st.lists(names, min_size=rollouts, max_size=rollouts))
    return torch.tensor(gains), torch.tensor(groups)


def loop_zscore(gains, groups, pooled: bool) -> list[list[float]]:
    """The definition, one entry at a time."""
    rows, names = gains.tolist(), groups.tolist()
    scores = []
    for row, name in zip(rows, names, strict=True):
        line = []
        for k, gain in enumerate(row):
            cell = [
                x
                for other, its in zip(rows, names, strict=True)
                if its == name
                for j, x in enumerate(other)
                if (pooled or j == k) and not math.isnan(x)
            ]
            if math.isnan(gain):
                line.append(NAN)
            elif len(cell) == 1:
                line.append(0.0)
            else:
                mean = sum(cell) / len(cell)
                variance = sum((x - mean) ** 2 for x in cell) / len(cell)
                line.append((gain - mean) / (math.sqrt(variance + 1e-8) + 1e-6))
        scores.append(line)
    return scores


# ---- worked examples


def test_turn_group_zscore_of_two_rollouts():
    # Depth 0: gains 1 and 3, mean 2, deviation 1 -> -1 and 1. Depth 1: one survivor -> 0.
    assert_near(turn_group_zscore(torch.tensor([[1, 5], [3, NAN]]), torch.tensor([0, 0])), [[-1, 0], [1, NAN]], 1e-4)


def test_pooled_zscore_of_two_rollouts():
    # 1, 5, 3: mean 3, variance (4 + 4 + 0) / 3, deviation 1.63299 -> -1.22474, 1.22474, 0
    scores = pooled_zscore(torch.tensor([[1, 5], [3, NAN]]), torch.tensor([0, 0]))
    assert_near(scores, [[-1.22474, 1.22474], [0, NAN]], 1e-4)


def test_discounted_sum_counts_only_turns_with_a_gain():
    scores = torch.tensor([[2, NAN, 1.0]])
    assert_near(discounted_sum(scores, 1.0, rescale=True), [[3 / math.sqrt(2), NAN, 1]])
    assert_near(discounted_sum(scores, 0.5, rescale=True), [[(2 + 0.25) / math.sqrt(2), NAN, 1]])
    assert_near(discounted_sum(scores, 1.0, rescale=False), [[3, NAN, 1]])
    assert_near(discounted_sum(scores, 0.0, rescale=False), [[2, NAN, 1]])


def test_clip_scale_stays_between_one_minus_and_one_plus_beta():
    # 2 sigmoid(1) - 1 = 0.46212
    assert_near(clip_scale(torch.tensor([[0, NAN, 100, -100, 1]]), 0.3), [[1, 1, 1.3, 0.7, 1.138635]])


def test_a2tgpo_credit_of_two_rollouts():
    # Scores -1 and 1; D = Z for the only tool turn; A = outcome + 0.3 D; c = 1 -+ 0.3 * 0.46212
    advantages, scale = a2tgpo_credit(
        torch.tensor([[1, NAN], [3, NAN]]),
        torch.tensor([0, 0]),
        torch.tensor([0.0, 1.0]),
        alpha=0.3,
        gamma=1,
        beta=0.3,
    )
    assert_near(advantages, [[-0.3, 0], [1.3, 1]], 1e-4)
    assert_near(scale, [[0.861364, 1], [1.138636, 1]], 1e-4)


def test_three_rollouts_of_unequal_depth():
    # Depth 0: 0, 2, 4 -> mean 2, deviation sqrt(8/3) = 1.63299 -> -1.22474, 0, 1.22474. Depth 1: 1, 3 -> -1, 1.
    # Depth 2: alone -> 0. D of the second rollout: (0 - 1)/sqrt 2; of the third: (1.22474 + 1 + 0)/sqrt 3, 1/sqrt 2,
    # 0.
    gains = torch.tensor([[0, NAN, NAN, NAN], [2, 1, NAN, NAN], [4, 3, 9, NAN]])
    advantages, _ = a2tgpo_credit(
        gains, torch.tensor([5, 5, 5]), torch.tensor([1.0, -1.0, 0.0]), alpha=1.0, gamma=1.0, beta=0.3
    )
    expected = [
        [1 - 1.22474, 1, 1, 1],
        [-1 - 0.70711, -1 - 1, -1, -1],
        [1.28445, 0.70711, 0, 0],
    ]
    assert_near(advantages, expected, 1e-4)


# ---- properties


@pytest.mark.parametrize("zscore", ZSCORES)
@given(table=gain_tables())
def test_zscores_equal_the_loop(zscore, table):
    assert_near(zscore(*table), loop_zscore(*table, pooled=zscore is pooled_zscore), 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zscore", ZSCORES)
@given(table=gain_tables(), shift=st.integers(-3, 3), scale=st.sampled_from([0.5, 2.0, 4.0]))
def test_scores_do_not_change_when_all_gains_of_a_cell_are_shifted_or_scaled(zscore, dtype, table, shift, scale):
    gains, groups = table[0].to(dtype), table[1]
    assert_near(zscore(gains * scale + shift, groups).float(), zscore(gains, groups).float(), DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@given(table=gain_tables(), shift=st.floats(-3, 3))
def test_turn_group_zscore_is_invariant_to_a_shift_of_one_depth(dtype, table, shift):
    gains, groups = table[0].to(dtype), table[1]
    shifted = gains.clone()
    shifted[:, 0] += round(shift * 8) / 8  # exact in bfloat16 too, up to rounding of the sum
    assert_near(turn_group_zscore(shifted, groups).float(), turn_group_zscore(gains, groups).float(), DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@given(table=gain_tables(), seed=st.integers(0, 99))
def test_the_order_of_rollouts_does_not_matter(dtype, table, seed):
    gains, groups = table[0].to(dtype), table[1]
    order = torch.randperm(len(gains), generator=torch.Generator().manual_seed(seed))
    outcomes = torch.linspace(-1, 1, len(gains), dtype=dtype)
    options = {"alpha": 0.3, "gamma": 0.9, "beta": 0.3}
    straight = a2tgpo_credit(gains, groups, outcomes, **options)
    permuted = a2tgpo_credit(gains[order], groups[order], outcomes[order], **options)
    for one, other in zip(straight, permuted, strict=True):
        assert_near(other, one[order], DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@given(table=gain_tables())
def test_nan_gains_stay_nan_and_credit_is_finite(dtype, table):
    gains, groups = table[0].to(dtype), table[1]
    for zscore in ZSCORES:
        scores = zscore(gains, groups)
        assert scores.dtype == dtype
        assert torch.equal(scores.isnan(), gains.isnan())
        for rescale in (True, False):
            assert torch.equal(discounted_sum(scores, 0.9, rescale).isnan(), gains.isnan())
    advantages, scale = a2tgpo_credit(gains, groups, gains.new_zeros(len(gains)), alpha=0.3, gamma=0.9, beta=0.3)
    assert advantages.isfinite().all() and scale.isfinite().all()
    assert (advantages[gains.isnan()] == 0).all() and (scale[gains.isnan()] == 1).all()
    assert ((scale >= 0.69) & (scale <= 1.31)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(value=st.integers(-1000, 1000), rollouts=st.integers(1, 6), turns=st.integers(1, 4))
def test_equal_gains_leave_only_the_outcome(dtype, value, rollouts, turns):
    gains = torch.full((rollouts, turns), value / 7, dtype=dtype)
    outcomes = torch.arange(rollouts, dtype=dtype)
    for normalization in ("turn_group", "pooled"):
        advantages, scale = a2tgpo_credit(
            gains, torch.zeros(rollouts), outcomes, alpha=0.3, gamma=1.0, beta=0.3, normalization=normalization
        )
        assert torch.equal(advantages, outcomes[:, None].expand_as(gains))
        assert (scale == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(gains=st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=5))
def test_single_rollout_group_is_credited_by_its_outcome_only(dtype, gains):
    # G = 1: every cell has a single member.
    advantages, scale = a2tgpo_credit(
        torch.tensor([gains], dtype=dtype),
        torch.tensor([3]),
        torch.tensor([0.5], dtype=dtype),
        alpha=0.3,
        gamma=1,
        beta=0.3,
    )
    assert (advantages == 0.5).all() and (scale == 1).all()


@given(table=gain_tables(most_groups=1))
def test_one_turn_is_the_same_pooled_or_by_depth(table):
    gains, groups = table[0][:, :1], table[1]  # K = 1
    assert_near(turn_group_zscore(gains, groups), pooled_zscore(gains, groups))


def test_large_gains_that_lie_close_together_keep_their_digits():
    gains = torch.tensor([[1000.0], [1000.25], [1000.5]])
    assert_near(turn_group_zscore(gains, torch.zeros(3)), [[-1.22474], [0], [1.22474]], 1e-3)


@pytest.mark.parametrize("zscore", ZSCORES)
def test_exact_numbers_that_hardly_differ_hardly_score(zscore):
    # 5e-8 from their mean, which is next to nothing beside a deviation of 1e-4: 5e-8 / (1e-4 + 1e-6).
    scores = zscore(torch.tensor([[0.0], [1e-7]]), torch.zeros(2), 0.0)
    assert_near(scores, [[-4.95e-4], [4.95e-4]], 1e-6)


@settings(max_examples=30)
@given(turns=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_rescaling_keeps_the_variance_of_early_turns_at_that_of_one_score(turns, seed):
    scores = torch.randn(4096, turns, generator=torch.Generator().manual_seed(seed))
    deviation = discounted_sum(scores, 1.0, rescale=True).std(dim=0)
    assert ((deviation > 0.9) & (deviation < 1.1)).all()


def test_without_normalisation_gains_keep_their_unit():
    gains = torch.tensor([[0.5, -0.25, NAN]])
    advantages, _ = a2tgpo_credit(
        gains, torch.tensor([0]), torch.tensor([0.0]), alpha=1, gamma=1, beta=0, normalization="none", rescale=False
    )
    assert_near(advantages, [[0.25, -0.25, 0]])
