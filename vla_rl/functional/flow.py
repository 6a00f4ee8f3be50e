"""Flow matching: denoising steps with and without noise, their log densities, and two losses.

A model gives the velocity v(x, t) from data (t = 0) to noise (t = 1): x_t = t e + (1 - t) a, v = e - a. A chunk is made
by K steps from t = 1 to t = 0. Models that count the other way (GR00T) give the same numbers with t -> 1 - t, v -> -v.

Shapes: see `vla_rl.types`, and
    H  control steps that the model predicts
    W  columns of the model's actions
    K  denoising steps
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def times(steps: int) -> Tensor:
    """t of each of the K steps' starts and of the last one's end, float32 [K + 1]: 1, 1 - 1/K, ..., 0."""
    return 1 - torch.arange(steps + 1) / steps


def transition(
    x_NHW: Tensor, velocity_NHW: Tensor, t_N: Tensor, next_N: Tensor, level_N: Tensor, *, first_step: float
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of one denoising step from t to u: Flow-SDE (Flow-GRPO, arXiv 2505.05470; pi_RL,
    arXiv 2510.25889).

        mean = (1 - u) a^ + (u - s^2 d / (2 t)) e^ = x - d v - s^2 d / (2 t) e^       std = s sqrt(d)
        s = level sqrt(t / (1 - t))     d = t - u     a^ = x - t v     e^ = x + (1 - t) v

    With small steps, x has the same distribution at each t whatever the level is. At t = 1, which is a pole of s, 1 - t
    is taken at the end of the first step. Level 0 is Euler's step, to the same bits.

    Args:
        t_N, next_N: t and u of each row.
        level_N: 0 for rows without noise; .5 is usual.
        first_step: 1 / K, the length of the step that begins at t = 1.

    Returns:
        Mean [N, H, W] and standard deviation [N, 1, 1].

    Example: x = .3, v = .7, the second of four steps (t .75, u .5), level .5: s = .5 sqrt(3) = .866, mean
    .3 - .175 - .75 * .25 / 1.5 * .475 = .065625, std .433.
    """
    t, u, level = (value_N[:, None, None] for value_N in (t_N, next_N, level_N))
    length = t - u
    from_pole = torch.where(t == 1, first_step, 1 - t)
    variance = level.square() * t / from_pole * length
    noise_end = x_NHW + (1 - t) * velocity_NHW
    mean_NHW = x_NHW - length * velocity_NHW - variance / (2 * t) * noise_end
    return mean_NHW, variance.sqrt()


def learnt_std(raw: Tensor, low: float = 0.08, high: float = 0.16) -> Tensor:
    """Standard deviation of a noisy step that a network chose, elementwise and between bounds: Flow-Noise (ReinFlow,
    arXiv 2505.22094; bounds of pi_RL, arXiv 2510.25889). The step's mean is Euler's, that of `transition` at level 0.

        std = low (high / low)^((1 + tanh raw) / 2)

    Args:
        raw: the network's outputs, any real numbers, [N, H, W].

    Example: raw 0 -> sqrt(.08 * .16) = .1131, the geometric mean of the bounds.
    """
    return low * (high / low) ** ((1 + raw.tanh()) / 2)


def gaussian_log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log Normal(value; mean, std^2) = -(value - mean)^2 / (2 std^2) - log std - log(2 pi) / 2, elementwise."""
    return -((value - mean) / std).square() / 2 - std.log() - math.log(2 * math.pi) / 2


def gaussian_entropy(std: Tensor) -> Tensor:
    """log std + (1 + log(2 pi)) / 2, in nats."""
    return std.log() + (1 + math.log(2 * math.pi)) / 2


def score_sq(value: Tensor, mean: Tensor, std: Tensor, t_N: Tensor, next_N: Tensor) -> Tensor:
    """Squared derivative of `gaussian_log_prob` of a denoising step by the velocity, elementwise.

        d log p / d v = (value - mean) / std^2 * d mean / d v        d mean / d v = -d - std^2 (1 - t) / (2 t)

    Args:
        value, mean: [N, ...] of the step from t to next; std broadcasts to them.
    """
    t, u = (value_N.view(-1, *[1] * (value.dim() - 1)) for value_N in (t_N, next_N))
    of_velocity = (t - u) + std.square() * (1 - t) / (2 * t)
    return ((value - mean) / std.square() * of_velocity).square()


def matching_time(rows: int, generator: torch.Generator) -> Tensor:
    """t at which flow matching is trained, float32 [N]: .999 Beta(1.5, 1) + .001, more often near the noise (pi0, arXiv
    2410.24164, appendix B). Beta(1.5, 1) has the distribution function x^1.5."""
    return 0.999 * torch.rand(rows, generator=generator) ** (1 / 1.5) + 0.001


def negative_aware_loss(
    velocity_NHW: Tensor,
    old_velocity_NHW: Tensor,
    x_NHW: Tensor,
    data_NHW: Tensor,
    t_N: Tensor,
    advantage_N: Tensor,
    *,
    beta: float = 1.0,
    most: float = 0.5,
) -> Tensor:
    """DiffusionNFT's loss, which needs no likelihood (arXiv 2509.16117; for flow policies arXiv 2603.02083).

        v+- = v_old +- beta (v - v_old)      E+- = (x_t - t v+- - x_0)^2      r = (clip(A, -m, m) + m) / (2 m)
        loss = (m / beta) (r E+ + (1 - r) E-)

    Where the advantage is positive the velocity is drawn to the chunk that was made, where it is negative away from it.
    At v = v_old the gradient is that of A E+ up to a factor.

    Args:
        velocity_NHW: of the policy that learns, at x_t.
        old_velocity_NHW: of the policy that acted, at the same x_t.
        x_NHW: x_t = t e + (1 - t) x_0 for any noise e and time t.
        data_NHW: x_0, the chunk that was made.
        advantage_N: of each chunk; or [N, H], of each control step.
        beta, most: as in the formula; `most` is m.

    Returns:
        Of each element, [N, H, W].

    Example: x_t = .5, t = .5, x_0 = .2, v = .8, v_old = .6, A = .25, m = .5: E+ = (.5 - .4 - .2)^2 = .01, v- = .4, E- =
    (.5 - .2 - .2)^2 = .01, r = .75, loss = .5 * .01 = .005.
    """
    t, advantage = t_N[:, None, None], advantage_N.view(len(advantage_N), -1, 1)
    share = (advantage.clamp(-most, most) + most) / (2 * most)
    change = beta * (velocity_NHW - old_velocity_NHW)
    errors = [(x_NHW - t * (old_velocity_NHW + side * change) - data_NHW).square() for side in (1, -1)]
    return most / beta * (share * errors[0] + (1 - share) * errors[1])
