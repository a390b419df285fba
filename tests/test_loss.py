import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from a2tgpo_trl.loss import LOG_RATIO_CAP, mean_log_ratio, ratio_reference, turn_policy_loss
from a2tgpo_trl.turns import turn_index


EPSILONS = {"epsilon_low": 0.1, "epsilon_high": 0.2}
TURN = turn_index(torch.tensor([[1, 1, 0, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 1, 1]]))


def random_inputs(seed: int, dtype=torch.float64, spread: float = 0.3):
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(2, 8, generator=generator, dtype=dtype)

    logps = -normal().abs() - 0.5
    return logps, logps + spread * normal(), normal(), 1 + 0.3 * torch.tanh(normal())


def test_a_turn_of_two_tokens_by_hand():
    # Log-ratios 0 and 0.2: r = exp(0.1) = 1.10517. A = 1: clipped at 1.05. A = -1: -r A = 1.10517.
    turn = torch.zeros(1, 2, dtype=torch.long)
    logps, old = torch.tensor([[-1.0, -0.8]]), torch.tensor([[-1.0, -1.0]])
    for advantage, expected in ((1.0, -1.05), (-1.0, math.exp(0.1))):
        loss = turn_policy_loss(
            logps, old, torch.full((1, 2), advantage), turn, torch.ones(1, 2), epsilon_low=0.05, epsilon_high=0.05
        )
        torch.testing.assert_close(loss, torch.full((1, 2), expected))


def test_the_clip_range_follows_the_scale_of_each_turn():
    # r = exp(0.3) = 1.35; ranges 1 + 0.5 * 0.2 = 1.1 and 1 + 1.5 * 0.2 = 1.3.
    turn = torch.tensor([[0, -1, 1]])
    logps, old = torch.full((1, 3), -0.7), torch.full((1, 3), -1.0)
    loss = turn_policy_loss(logps, old, torch.ones(1, 3), turn, torch.tensor([[0.5, 1.0, 1.5]]), **EPSILONS)
    torch.testing.assert_close(loss, torch.tensor([[-1.1, 0.0, -1.3]]))


def test_turns_of_one_token_have_the_token_ratio():
    turn = turn_index(torch.tensor([[1, 0, 1, 0, 1, 0, 0, 1]] * 2))
    logps, old, advantages, scale = random_inputs(1)
    by_turn, by_token = (
        turn_policy_loss(logps, old, advantages, turn, scale, **EPSILONS, level=level) for level in ("turn", "token")
    )
    torch.testing.assert_close(by_turn, by_token, atol=1e-12, rtol=0)


def test_one_turn_has_the_sequence_ratio():
    turn = turn_index(torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]] * 2))
    logps, old, advantages, scale = random_inputs(2)
    by_turn, by_sequence = (
        turn_policy_loss(logps, old, advantages, turn, scale, **EPSILONS, level=level)
        for level in ("turn", "sequence")
    )
    torch.testing.assert_close(by_turn, by_sequence, atol=0, rtol=0)
    expected = (logps - old)[:, :5].mean(dim=1)
    torch.testing.assert_close(mean_log_ratio(logps, old, turn, "sequence")[:, 0], expected)


@pytest.mark.parametrize("level", ["turn", "token", "sequence"])
def test_gradient_of_a_shared_ratio_weighs_each_token_by_it(level):
    logps, old, advantages, scale = random_inputs(3, spread=0.01)  # inside the clip range
    logps.requires_grad_()
    turn_policy_loss(logps, old, advantages, TURN, scale, **EPSILONS, level=level).sum().backward()
    shared = (logps - old).detach() if level == "token" else mean_log_ratio(logps.detach(), old, TURN, level)
    expected = torch.where(TURN >= 0, -shared.exp() * advantages, 0.0)
    torch.testing.assert_close(logps.grad, expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.01, 0.3, 2.0]))
def test_gradcheck_of_the_token_level(seed, spread):
    logps, old, advantages, scale = random_inputs(seed, spread=spread)
    assert torch.autograd.gradcheck(
        lambda x: turn_policy_loss(x, old, advantages, TURN, scale, **EPSILONS, level="token"), logps.requires_grad_()
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), spread=st.sampled_from([0.01, 0.3, 2.0]), level=st.sampled_from(["turn", "sequence"])
)
def test_gradcheck_of_the_surrogate_that_a_detached_ratio_stands_for(seed, spread, level):
    # A stop-gradient has no numerical gradient, so gradcheck sees the same function with the shared value as a
    # constant: f(x) = loss at log-ratio (x - x0) + mean(x0). Its analytic gradient at x0 is that of turn_policy_loss.
    start, old, advantages, scale = random_inputs(seed, spread=spread)
    constant = ratio_reference(start, old, TURN, level)[1]

    def surrogate(x):
        return turn_policy_loss(x, constant, advantages, TURN, scale, **EPSILONS, level="token")

    start.requires_grad_()
    assert torch.autograd.gradcheck(surrogate, start)
    shared = turn_policy_loss(start, old, advantages, TURN, scale, **EPSILONS, level=level)
    (gradient,) = torch.autograd.grad(shared.sum(), start)
    (expected,) = torch.autograd.grad(surrogate(start).sum(), start)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("level", ["turn", "token", "sequence"])
def test_tokens_outside_turns_may_hold_anything(level):
    logps, old, advantages, scale = random_inputs(4)
    outside = TURN < 0
    clean = turn_policy_loss(logps, old, advantages, TURN, scale, **EPSILONS, level=level)
    for poison in (torch.nan, torch.inf, -torch.inf):
        dirty = logps.masked_fill(outside, poison).requires_grad_()
        loss = turn_policy_loss(dirty, old, advantages, TURN, scale, **EPSILONS, level=level)
        assert torch.equal(loss, clean) and (loss[outside] == 0).all()
        (gradient,) = torch.autograd.grad(loss.sum(), dirty)
        assert gradient.isfinite().all() and (gradient[outside] == 0).all()


@pytest.mark.parametrize("level", ["turn", "token", "sequence"])
def test_the_ratio_outside_turns_is_one_whatever_the_old_log_probabilities_are_there(level):
    logps, old, _, _ = random_inputs(4)
    outside = TURN < 0
    for poison in (torch.nan, torch.inf, -torch.inf, -1000.0):
        logps_BT, reference_BT = ratio_reference(logps, old.masked_fill(outside, poison), TURN, level)
        assert ((logps_BT - reference_BT).exp()[outside] == 1).all()


@pytest.mark.parametrize("level", ["turn", "sequence"])
def test_log_ratio_beyond_the_cap_is_capped_without_gradient(level):
    logps = torch.full((1, 3), -1.0, requires_grad=True)
    loss = turn_policy_loss(
        logps, torch.full((1, 3), -30.0), -torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3),
        **EPSILONS, level=level,
    )  # fmt: skip
    torch.testing.assert_close(loss, torch.full((1, 3), math.exp(LOG_RATIO_CAP)))
    loss.sum().backward()
    assert (logps.grad == 0).all()


def test_an_unknown_level_is_an_error():
    with pytest.raises(ValueError, match="'turn' or 'sequence'"):
        ratio_reference(*random_inputs(5)[:2], TURN, "word")
