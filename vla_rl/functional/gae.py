"""Advantages of single decisions from a critic's values, and the critic's loss, as pure functions.

Shapes: see `vla_rl.types`, and
    T  decisions, or control steps, of one episode or of several one after the other
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Bootstrap = Literal["none", "truncated", "always"]
BOOTSTRAPS = get_args(Bootstrap)


def gae(reward_T: Tensor, value_T: Tensor, done_T: Tensor, next_value: float, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates (GAE, arXiv 1506.02438, Eq 16).

        delta_t = r_t + gamma V_{t+1} (1 - done_t) - V_t
        A_t = delta_t + gamma lam (1 - done_t) A_{t+1}

    `lam=1` compares all that was earned from t on with V_t; `lam=0` believes the next value.

    Args:
        reward_T: earned between decision t and the next.
        value_T: V_t, what was expected at decision t.
        done_T: bool, decision t was the last one of its episode.
        next_value: V after the last decision; counts where that was not the end of its episode.

    Returns:
        float64 [T]; `returns` gives what the values should have been.

    Example:
        >>> gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.8]), torch.tensor([False, True]), 0.0, gamma=1, lam=0.5)
        tensor([0.4000, 0.2000], dtype=torch.float64)
    """
    assert reward_T.shape == value_T.shape == done_T.shape
    assert reward_T.ndim == 1
    goes_on_T = gamma * (~done_T).double()
    next_T = torch.cat([value_T[1:].double(), torch.tensor([next_value], dtype=torch.float64)])
    delta_T = reward_T.double() + goes_on_T * next_T - value_T.double()
    advantage_T = torch.zeros_like(delta_T)
    later = torch.zeros((), dtype=torch.float64)
    for t in range(len(delta_T) - 1, -1, -1):
        later = delta_T[t] + lam * goes_on_T[t] * later
        advantage_T[t] = later
    return advantage_T


def returns(advantage_T: Tensor, value_T: Tensor) -> Tensor:
    """R_t = A_t + V_t, the targets of the critic."""
    return advantage_T + value_T


def bootstrapped(
    reward_T: Tensor, done_T: Tensor, timed_out_T: Tensor, final_value_T: Tensor, *, gamma: float, how: Bootstrap
) -> Tensor:
    """Rewards to which the value of the final observation is added where an episode was cut off.

    `none`: a time-out is a failure. `truncated`: r_t + gamma V(final) where the episode ran out of time.
    `always`: where it ended, whyever.

    Args:
        done_T: bool, decision t was the last one of its episode.
        timed_out_T: bool, and it was the last one because time was up.
        final_value_T: V of the observation after decision t; counts only where it is added.

    Raises:
        ValueError: for an unknown `how`.
    """
    ends = {"none": torch.zeros_like(done_T), "truncated": done_T & timed_out_T, "always": done_T}
    if how not in ends:
        raise ValueError(f"no bootstrap named {how!r}; choose none, truncated or always")
    return torch.where(ends[how], reward_T + gamma * final_value_T, reward_T)


def centred(advantage_N: Tensor) -> Tensor:
    """(A - mean) / (std + 1e-5) over all real decisions of an iteration, of all ranks together."""
    return (advantage_N - advantage_N.mean()) / (advantage_N.std(correction=0) + 1e-5)


def scaled(advantage_N: Tensor) -> Tensor:
    """A / (root mean square + 1e-5) over all real decisions of an iteration: what changed nothing keeps its zero."""
    return advantage_N / (advantage_N.square().mean().sqrt() + 1e-5)


def value_loss(value_N: Tensor, old_value_N: Tensor, return_N: Tensor, *, clip: float, huber_delta: float) -> Tensor:
    """The clipped loss of a critic, one number per decision (PPO's value clip with a Huber loss).

        max(huber(R - V), huber(R - clip(V, V_old - clip, V_old + clip)))

    Args:
        value_N: of the critic that learns, differentiable.
        old_value_N: of the critic at the rollout.
        return_N: `returns`.
        clip: how far the value may leave the old one before its gradient stops.
        huber_delta: where the square becomes linear.

    Example: V_old .5, V .9, R .6, clip .2 -> max(.3^2, .1^2) / 2 = .045.
    """
    clipped_N = old_value_N + (value_N - old_value_N).clamp(-clip, clip)
    losses = [F.huber_loss(v, return_N, reduction="none", delta=huber_delta) for v in (value_N, clipped_N)]
    return torch.maximum(*losses)


def explained_variance(value_N: Tensor, return_N: Tensor) -> float | None:
    """1 - var(R - V) / var(R): 1 for perfect values, 0 for a constant, below 0 for worse; None where R is constant."""
    variance = return_N.double().var(correction=0)
    if len(return_N) < 2 or not variance > 0:
        return None
    return float(1 - (return_N.double() - value_N.double()).var(correction=0) / variance)
