"""Advantages from values, against numbers worked out by hand."""

import pytest
import torch

from vla_rl.functional.gae import bootstrapped, centred, explained_variance, gae, returns, scaled, value_loss

REWARD = torch.tensor([0.0, 0.0, 1.0, 0.0])
VALUE = torch.tensor([0.5, 0.6, 0.7, 0.2])
DONE = torch.tensor([False, False, True, False])  # one episode of three decisions, and the first of the next


def test_advantages_and_returns_of_two_episodes():
    # t=3: .99 x .3 - .2 = .097    t=2: 1 - .7 = .3    t=1: .99 x .7 - .6 + .9405 x .3 = .37515
    # t=0: .99 x .6 - .5 + .9405 x .37515 = .446829
    advantage = gae(REWARD, VALUE, DONE, 0.3, gamma=0.99, lam=0.95)
    assert advantage.tolist() == pytest.approx([0.446829, 0.37515, 0.3, 0.097], abs=1e-6)
    assert returns(advantage, VALUE).tolist() == pytest.approx([0.946829, 0.97515, 1.0, 0.297], abs=1e-6)


def test_advantages_are_computed_in_double_precision():
    # t=1: 0 - 1 = -1    t=0: .99 x 1 - 1 + .9405 x -1 = -.9505; .99 and .95 in float32 would be 1e-8 off
    advantage = gae(torch.zeros(2), torch.ones(2), torch.tensor([False, True]), 0.0, gamma=0.99, lam=0.95)
    assert advantage.tolist() == pytest.approx([-0.9505, -1.0], abs=1e-12)


def test_lambda_one_and_a_constant_value_are_the_reward_minus_that_value():
    for reward in (0.0, 1.0):
        reward_T = torch.tensor([0.0, 0.0, 0.0, reward])
        done_T = torch.tensor([False, False, False, True])
        advantage = gae(reward_T, torch.full((4,), 0.3), done_T, 7.0, gamma=1.0, lam=1.0)
        assert advantage.tolist() == pytest.approx([reward - 0.3] * 4, abs=1e-6)


def test_lambda_zero_is_the_step_from_value_to_value():
    advantage = gae(REWARD[:3], VALUE[:3], DONE[:3], 7.0, gamma=1.0, lam=0.0)
    assert advantage.tolist() == pytest.approx([0.1, 0.1, 0.3], abs=1e-6)


@pytest.mark.parametrize(
    ("how", "last"),
    [("none", [1.0, 0.0]), ("truncated", [1.0, 0.99 * 0.4]), ("always", [1.495, 0.99 * 0.4])],
)
def test_a_bootstrap_adds_the_value_of_the_final_observation(how, last):
    reward = torch.tensor([0.0, 1.0, 0.0, 0.0])  # a success after two decisions, an episode that ran out of time
    done = torch.tensor([False, True, False, True])
    timed_out = torch.tensor([False, False, False, True])
    final = torch.tensor([9.0, 0.5, 9.0, 0.4])
    added = bootstrapped(reward, done, timed_out, final, gamma=0.99, how=how)
    assert added.tolist() == pytest.approx([0.0, last[0], 0.0, last[1]])


def test_a_bootstrapped_reward_in_the_advantage():
    reward = bootstrapped(REWARD, DONE, torch.zeros(4, dtype=torch.bool), torch.full((4,), 0.5), gamma=0.99,
                          how="always")  # fmt: skip
    assert float(gae(reward, VALUE, DONE, 0.3, gamma=0.99, lam=0.95)[2]) == pytest.approx(0.795)


def test_an_unknown_bootstrap_is_refused():
    with pytest.raises(ValueError, match="no bootstrap named 'sometimes'; choose none, truncated or always"):
        bootstrapped(REWARD, DONE, DONE, VALUE, gamma=1.0, how="sometimes")


def test_normalised_over_all_decisions():
    advantage = torch.tensor([1.0, 3.0, 5.0, 7.0])  # mean 4, standard deviation sqrt(5)
    assert centred(advantage).tolist() == pytest.approx([-1.341635, -0.447212, 0.447212, 1.341635], abs=1e-5)
    assert scaled(advantage).tolist() == pytest.approx(
        [0.218217, 0.654652, 1.091087, 1.527522], abs=1e-5
    )  # by sqrt(21)
    assert scaled(torch.zeros(2)).tolist() == [0.0, 0.0]
    assert scaled(torch.tensor([1e-5, -1e-5])).tolist() == pytest.approx([0.5, -0.5])  # 1e-5 / (1e-5 + 1e-5)
    equal = torch.full((3,), 2.0)
    assert centred(equal).tolist() == [0.0] * 3  # no spread: zeros, not NaN


def test_the_value_loss_takes_the_worse_of_the_value_and_the_clipped_one():
    value = torch.tensor([0.9, 0.55, 0.9, 20.5], requires_grad=True)
    old, target = torch.full((4,), 0.5), torch.tensor([0.6, 0.6, 2.0, 0.5])
    loss = value_loss(value, old, target, clip=0.2, huber_delta=10.0)
    # |R - V| .3 (clipped .1); .05 within the clip; 1.1, clipped 1.3 counts; 20, linear beyond 10: 10 x (20 - 5)
    assert loss.tolist() == pytest.approx([0.045, 0.00125, 0.845, 150.0])
    loss.sum().backward()
    assert value.grad.tolist() == pytest.approx([0.3, -0.05, 0.0, 10.0])  # the clip stops the third


def test_explained_variance():
    outcome = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert explained_variance(outcome, outcome) == 1.0
    assert explained_variance(torch.full((4,), 0.5), outcome) == pytest.approx(0.0)
    # errors .2 .2 -.2 -.2: variance .04 of .25
    assert explained_variance(torch.tensor([0.2, 0.2, 0.8, 0.8]), outcome) == pytest.approx(0.84)
    assert explained_variance(outcome, torch.ones(4)) is None
    assert explained_variance(torch.tensor([0.25, 0.75]), torch.tensor([0.0, 1.0])) == 0.75  # 1 - (1/16) / (1/4)
    assert explained_variance(torch.ones(1), torch.ones(1)) is None
