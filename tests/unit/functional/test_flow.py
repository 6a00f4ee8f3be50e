"""Flow matching by numbers worked out by hand, and by distributions whose velocity is known."""

import math

import pytest
import torch

from vla_rl.functional.flow import (
    gaussian_entropy,
    gaussian_log_prob,
    learnt_std,
    matching_time,
    negative_aware_loss,
    score_sq,
    times,
    transition,
)

LEVEL = 0.5


def step(x, v, k, steps, level=LEVEL):
    """Mean and standard deviation of step k for numbers, or tensors of rows, x and v."""
    x, v = (torch.as_tensor(value).reshape(-1, 1, 1) for value in (x, v))
    rows = torch.full((len(x),), k)
    t = times(steps).to(x)
    levels = torch.full((len(x),), level, dtype=x.dtype)
    mean, std = transition(x, v, t[rows], t[rows + 1], levels, first_step=1 / steps)
    return mean[:, 0, 0], std[:, 0, 0]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (3, [0.5, 0.4082, 0.2041]),
        (4, [0.5, 0.4330, 0.25, 0.1443]),
        (5, [0.5, 0.4472, 0.2739, 0.1826, 0.1118]),
    ],
)
def test_standard_deviations(steps, expected):
    # K = 4, second step: s = .5 sqrt(.75 / .25) = .866, times sqrt(.25)
    assert [step(0.0, 0.0, k, steps)[1].item() for k in range(steps)] == pytest.approx(expected, abs=5e-5)


def test_means_and_log_density():
    means = [step(0.3, 0.7, k, 4)[0].item() for k in range(4)]
    assert means == pytest.approx([0.0875, 0.065625, 0.084375, 0.090625], abs=1e-6)
    mean, std = step(0.3, 0.7, 1, 4)
    # (.2 - .065625)^2 / (2 * .1875) = .04815; log .433 = -.83698; log(2 pi) / 2 = .91894
    assert gaussian_log_prob(torch.tensor(0.2), mean, std).item() == pytest.approx(-0.130101, abs=1e-5)


def test_level_0_is_eulers_step_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 50, generator=generator)
    for k in range(4):
        mean, std = step(x, v, k, 4, level=0.0)
        assert torch.equal(mean, x - 0.25 * v)
        assert not std.any()


def test_rows_may_stand_at_different_steps():
    x, v, k_N, levels = torch.tensor([0.3, 0.3]), torch.tensor([0.7, 0.7]), torch.tensor([0, 2]), torch.tensor([0.5, 0])
    t = times(4)
    mean, std = transition(x[:, None, None], v[:, None, None], t[k_N], t[k_N + 1], levels, first_step=0.25)
    assert mean.flatten().tolist() == pytest.approx([0.0875, 0.125], abs=1e-6)
    assert std.flatten().tolist() == [0.5, 0.0]


def test_flow_noise_lies_between_its_bounds():
    # tanh(.5493) = .5: .08 * 2^(3/4)
    raw = torch.tensor([-50.0, 0.0, 0.549306, 50.0])
    assert learnt_std(raw).tolist() == pytest.approx([0.08, 0.113137, 0.134543, 0.16], abs=1e-6)
    assert learnt_std(raw, low=0.02, high=0.04).tolist() == pytest.approx([0.02, 0.028284, 0.033636, 0.04], abs=1e-6)


def exact_velocity(x, t):
    """Of data Normal(.4, .3^2): E[e - a | x_t = x]."""
    return (t - (1 - t) * 0.09) / (t**2 + (1 - t) ** 2 * 0.09) * (x - (1 - t) * 0.4) - 0.4


def sample(steps, noisy, rows=100_000):
    """Mean and standard deviation of x_0, with noise at the steps that `noisy` names."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, generator=generator, dtype=torch.float64)
    for k in range(steps):
        t = 1 - k / steps
        mean, std = step(x, exact_velocity(x, t), k, steps, level=LEVEL if k in noisy else 0.0)
        x = mean + std * torch.randn(rows, generator=generator, dtype=torch.float64)
    return x.mean().item(), x.std().item()


@pytest.mark.parametrize(
    ("steps", "noisy", "expected"),
    [
        (4, (), 0.177),
        (4, range(4), 0.238),
        (10, range(10), 0.271),
        (100, range(100), 0.298),
        (4, (0,), 0.189),
        (4, (1,), 0.201),
        (4, (2,), 0.206),
        (4, (3,), 0.208),
    ],
)
def test_the_distribution_of_a_known_flow(steps, noisy, expected):
    """A coarse ODE is too narrow, one noisy step widens it, and noise at many small steps keeps the data's .3."""
    mean, std = sample(steps, noisy)
    assert mean == pytest.approx(0.4, abs=0.002)
    assert std == pytest.approx(expected, abs=0.0015)


def test_a_flow_that_counts_the_other_way_gives_the_same_step():
    # t' = 1 - t, v' = -v: mean = x + d v' - s^2 d / (2 (1 - t')) (x - t' v')
    x, v, t, u = 0.3, 0.7, 0.75, 0.5
    t_other, v_other = 1 - t, -v
    variance = LEVEL**2 * (1 - t_other) / t_other * (t - u)
    mean_other = x + (t - u) * v_other - variance / (2 * (1 - t_other)) * (x - t_other * v_other)
    assert step(x, v, 1, 4)[0].item() == pytest.approx(mean_other, abs=1e-7)


def test_the_score_is_the_derivative_by_the_velocity():
    t = times(4)
    for k in range(4):
        v = torch.tensor([[[0.7, -0.2]]], requires_grad=True)
        x, value = torch.tensor([[[0.3, 0.1]]]), torch.tensor([[[0.2, -0.4]]])
        t_N, next_N = t[[k]], t[[k + 1]]
        mean, std = transition(x, v, t_N, next_N, torch.tensor([LEVEL]), first_step=0.25)
        gaussian_log_prob(value, mean, std).sum().backward()
        found = score_sq(value, mean.detach(), std, t_N, next_N)
        torch.testing.assert_close(found, v.grad.square())


def test_the_mean_score_is_zero():
    """E[d log p / d theta] = 0 over 4,000 paths, for a velocity with one parameter: theta x."""
    theta, total = torch.tensor(0.6, requires_grad=True), []
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4000, generator=generator)
    for k in range(4):
        mean, std = step(x, theta * x, k, 4)
        value = (mean + std * torch.randn(4000, generator=generator)).detach()
        logprob = gaussian_log_prob(value, mean, std)
        # the derivative of each path: its mean depends on theta linearly
        slope = torch.autograd.grad(mean.sum(), theta, retain_graph=True)[0]
        assert slope.abs() > 0
        total.append(((value - mean) / std.square() * (step(x, (theta + 1) * x, k, 4)[0] - mean)).detach())
        (gradient,) = torch.autograd.grad(logprob.sum(), theta)
        assert gradient.item() == pytest.approx(total[-1].sum().item(), rel=1e-3, abs=1e-2)
        x = value
    score = torch.stack(total).sum(0)
    assert abs(score.mean() / (score.std() / math.sqrt(4000))) < 3


def test_entropy():
    # half of log(2 pi e) + log(.5)
    assert gaussian_entropy(torch.tensor(0.5)).item() == pytest.approx(1.418939 - 0.693147, abs=1e-5)


def test_times_of_training_lie_near_the_noise():
    t = matching_time(100_000, torch.Generator().manual_seed(0))
    assert t.min() >= 0.001 and t.max() <= 1
    assert t.mean().item() == pytest.approx(0.999 * 0.6 + 0.001, abs=0.003)  # Beta(1.5, 1) has mean 1.5 / 2.5
    assert (t < 0.5).float().mean().item() == pytest.approx(0.5**1.5, abs=0.01)


def test_negative_aware_loss_by_hand():
    args = [torch.tensor([[[value]]]) for value in (0.8, 0.6, 0.5, 0.2)]
    loss = negative_aware_loss(*args, torch.tensor([0.5]), torch.tensor([0.25]))
    assert loss.item() == pytest.approx(0.005, abs=1e-7)
    # beta 2: v+ = 1, v- = .2; E+ = (.5 - .5 - .2)^2 = .04, E- = (.5 - .1 - .2)^2 = .04; .25 * .04
    assert negative_aware_loss(*args, torch.tensor([0.5]), torch.tensor([9.0]), beta=2.0).item() == pytest.approx(0.01)


@pytest.mark.parametrize("advantage", [0.5, -0.5])
def test_negative_aware_loss_moves_towards_a_good_chunk_and_away_from_a_bad_one(advantage):
    old = torch.tensor([[[0.6]]])
    v = old.clone().requires_grad_()
    x, data, t = torch.tensor([[[0.5]]]), torch.tensor([[[0.1]]]), torch.tensor([0.5])
    negative_aware_loss(v, old, x, data, t, torch.tensor([advantage])).sum().backward()
    towards = (x - data) / 0.5 - old  # to the velocity that leads from x_t to the data
    assert torch.sign(-v.grad) == torch.sign(advantage * towards)


def test_a_toy_bandit_learns():
    """Two contexts, a chunk of 4 x 3, one noisy step of 4; the reward is -mean (chunk - target)^2."""
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([0.7, -0.7])[:, None, None].expand(2, 4, 3)
    weight = torch.zeros(2, 12, requires_grad=True)  # the velocity is x - weight, so that the data end is weight
    optimizer, t = torch.optim.Adam([weight], lr=0.03), times(4)

    def run(context, k_N, level):
        x, scored = torch.randn(len(context), 4, 3, generator=generator), None
        for k in range(4):
            v = (x - weight[context].view(-1, 4, 3)) / t[k]
            rows = torch.full_like(context, k)
            mean, std = transition(x, v, t[rows], t[rows + 1], level * (k_N == k), first_step=0.25)
            new = (mean + std * torch.randn(mean.shape, generator=generator)).detach()
            safe = torch.where(std > 0, std, 1.0)
            logprob = torch.where(std > 0, gaussian_log_prob(new, mean, safe), 0.0).sum((1, 2))
            scored = logprob if scored is None else scored + logprob
            x = new
        return -(x - target[context]).square().mean((1, 2)), scored

    def greedy():
        return run(torch.tensor([0, 1] * 64), torch.full((128,), -1), 0.5)[0].mean().item()

    before = greedy()
    for _ in range(150):
        context = torch.arange(2).repeat_interleave(16)
        reward, logprob = run(context, torch.randint(0, 4, (32,), generator=generator), 0.5)
        groups = reward.view(2, 16)
        advantage = ((groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True)).flatten()
        optimizer.zero_grad()
        (-(advantage * logprob).mean()).backward()
        optimizer.step()
    assert before < -0.45
    assert greedy() > -0.1
