"""PolicyTrim's rewards as pure functions ("Boosting Intrinsic Policy Efficiency of Vision-Language-Action Models",
arXiv 2606.22540): first longer chunks that can be relied on, then fewer steps.

A policy that predicts H control steps executes a window of h = floor(gamma H) of them. Shapes: see `vla_rl.types`, and
    G  trajectories of one group
    M  ratios gamma
    K  tasks

Where the paper is silent:
1. Ratios are spread evenly over a group (`balanced`): with independent draws (`uniform`) a group may lack a window.
2. One success in a group has no penalty: it cannot leave its own mean.
3. S_base of a task without a success is the suite's, and without any success the longest episode's.
4. `factorised_advantage`: in a group that succeeds throughout, the usual advantage of `extension_reward` ranks windows
   by length alone, whatever happened; this one is exactly zero there, and unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RATIOS = 3  # M of the paper
ROUNDING = 1e-9  # a ratio of 0.29 times 100 steps is 28.999999999999996


class Preset(NamedTuple):
    """The published values of the second stage."""

    step_coef: float
    penalty: float  # lambda
    sigma_floor: str  # of SIGMA_FLOORS


PRESETS = {
    "paper": Preset(1.0, 0.15, "clamp"),
    "paper_appendix": Preset(0.8, 0.2, "clamp"),
    "release_pi05": Preset(1.0, 0.15, "gate"),
    "release_oft": Preset(0.8, 0.2, "gate"),
}


def window_of(ratio: float, chunk_steps: int) -> int:
    """Control steps executed of a chunk, h = floor(gamma H)."""
    return math.floor(ratio * chunk_steps + ROUNDING)


def spaced_ratios(base_window: int, chunk_steps: int) -> list[float]:
    """M ratios, evenly spaced from the original window's to 1.

    Example:
        >>> spaced_ratios(8, 16)
        [0.5, 0.75, 1.0]
    """
    low = base_window / chunk_steps
    return [low + (1 - low) * m / (RATIOS - 1) for m in range(RATIOS)]


def balanced(ratios: int, size: int, generator: torch.Generator) -> Tensor:
    """Which of M ratios each of G trajectories executes: as equally often as can be, in random order; which ratios are
    the more frequent ones is random too.

    Returns:
        int64 [G] in [0, M).
    """
    order_M = torch.randperm(ratios, generator=generator)
    return order_M.repeat(math.ceil(size / ratios))[:size][torch.randperm(size, generator=generator)]


def uniform(ratios: int, size: int, generator: torch.Generator) -> Tensor:
    """`balanced`, but each trajectory on its own."""
    return torch.randint(ratios, (size,), generator=generator)


ASSIGNMENTS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {"balanced": balanced, "uniform": uniform}


def extension_reward(success_G: Tensor, ratio_G: Tensor, beta: float) -> Tensor:
    """Success counts more the more of each chunk is executed: R_ext = I (1 + beta gamma), stage 1.

    Example: beta 1, gamma 1/3 and 1, both succeed -> 4/3 and 2.
    """
    return success_G * (1 + beta * ratio_G)


def factorised_advantage(success_G: Tensor, ratio_G: Tensor, beta: float) -> Tensor:
    """A_i = (1 + beta gamma_i) (I_i - mean of I_j over j != i): how much better than the others, weighed by the window.

    Example: success 1 0 1, gamma 1/2, beta 1 -> 1.5 x (1/2, -1, 1/2).
    """
    others_G = (success_G.sum() - success_G) / (len(success_G) - 1)
    return (1 + beta * ratio_G) * (success_G - others_G)


def step_reward(steps_G: Tensor, base_steps: float) -> Tensor:
    """The share of the steps that is saved, R_step = max(0, S_base - S) / S_base, stage 2.

    Args:
        steps_G: control steps to success (of failures, whatever: their reward is 0 anyway).
        base_steps: S_base of the task, from `baseline_steps`.
    """
    return (base_steps - steps_G).clamp(min=0.0) / base_steps


def clamped(deviation_G: Tensor, sigma: Tensor, floor: float) -> Tensor:
    """|S - mu| in units of max(sigma, floor)."""
    return deviation_G / sigma.clamp(min=floor)


def gated(deviation_G: Tensor, sigma: Tensor, floor: float) -> Tensor:
    """|S - mu| in units of sigma; none where sigma is below the floor."""
    return deviation_G / sigma if sigma >= floor else torch.zeros_like(deviation_G)


SIGMA_FLOORS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"clamp": clamped, "gate": gated}


def stability_penalty(
    steps_G: Tensor,
    success_G: Tensor,
    coef: float,
    sigma_floor: float,
    scale: Callable[[Tensor, Tensor, float], Tensor] = clamped,
) -> Tensor:
    """What leaving the group's pace costs, P_stab = lambda tanh(|S - mu| / max(sigma, sigma_floor)), stage 2.

    Args:
        steps_G: control steps; mu and sigma (population) are those of the group's successes.
        coef: lambda, the most it can cost.
        sigma_floor: steps, above 0: a group whose members differ by less has hardly a pace to leave.
        scale: one of `SIGMA_FLOORS`.

    Returns:
        float [G]; zero for failures, and where only one succeeds.
    """
    succeeded_G = success_G > 0
    if not succeeded_G.any():
        return torch.zeros_like(steps_G)
    own = steps_G[succeeded_G]
    deviation_G = (steps_G - own.mean()).abs()
    return coef * scale(deviation_G, own.std(correction=0), sigma_floor).tanh() * succeeded_G


def reduction_reward(success_G: Tensor, step_reward_G: Tensor, penalty_G: Tensor, step_coef: float) -> Tensor:
    """R_eff = I (1 + step_coef R_step - P_stab), stage 2."""
    return success_G * (1 + step_coef * step_reward_G - penalty_G)


def baseline_steps(steps_K: Tensor, successes_K: Tensor, factor: float, longest: float) -> Tensor:
    """S_base of each task: `factor` times the mean steps of the initial policy's successes.

    Args:
        steps_K: control steps of the successes, summed.
        successes_K: how many there are.
        longest: control steps of the longest possible episode, for a suite in which nothing succeeds.

    Returns:
        float [K].

    Example: steps 200 and 0, successes 2 and 0, factor 1.3 -> 130 and 130 (the suite's).
    """
    if not successes_K.sum():
        return torch.full_like(steps_K, longest)
    suite = steps_K.sum() / successes_K.sum()
    mean_K = torch.where(successes_K > 0, steps_K / successes_K.clamp(min=1), suite)
    return factor * mean_K


def step_drift(advantage_G: Tensor, steps_G: Tensor, success_G: Tensor) -> float:
    """cov(A, S) over the group's successes (population): negative while faster successes are preferred.

    With `clamp` and a small sigma the penalty outweighs the saved steps, and the fastest members fall behind: watch it.

    Returns:
        NaN with fewer than two successes.
    """
    own = success_G > 0
    if own.sum() < 2:
        return math.nan
    advantage, steps = advantage_G[own], steps_G[own]
    return float(((advantage - advantage.mean()) * (steps - steps.mean())).mean())


def caught_up(successes_M: Tensor, episodes_M: Tensor, margin: float) -> bool:
    """Whether the widest window succeeds as often as the original one, up to `margin`; False while nothing succeeds.

    Args:
        successes_M, episodes_M: counts per window, from the original one to the widest.
    """
    if not successes_M[0] or not episodes_M[-1]:
        return False
    base, widest = (float(successes_M[m]) / float(episodes_M[m]) for m in (0, -1))
    return widest >= base - margin - ROUNDING
