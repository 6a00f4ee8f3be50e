"""Where an episode is decided: how much a critic's expectation changes in each chunk, as pure functions.

Shapes: see `vla_rl.types`, and
    F  phases
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vla_rl.functional.phases import Labeller
from vla_rl.types import RolloutGroup

OPEN = (0.1, 0.9)  # shares of the reward between which an outcome counts as undecided


def credit(value_N: Tensor, reward: float) -> Tensor:
    """How much the expected reward changes while each chunk is executed, squared, float32 [N].

        credit_t = (V_{t+1} - V_t)^2, where V after the last chunk is what the episode earned

    The values form a martingale if they are right; then these numbers add up, on average, to the variance of the
    outcome that an episode starts with, and each is the part of it that its chunk decides.

    Args:
        value_N: V_t, what was expected before each chunk, by a critic that does not know this episode's outcome.
        reward: what the episode earned.

    Example:
        >>> credit(torch.tensor([0.5, 0.5, 1.0]), 1.0).tolist()
        [0.0, 0.25, 0.0]
    """
    next_N = torch.cat([value_N[1:], value_N.new_tensor([reward])])
    return (next_N - value_N).square()


def undecided(value_N: Tensor) -> Tensor:
    """Before which chunks the outcome is open, bool [N]."""
    low, high = OPEN
    return (value_N > low) & (value_N < high)


def mean_credit(groups: Sequence[RolloutGroup], reduce: Callable[[Tensor], Tensor], label: Labeller) -> Tensor:
    """Mean credit of the chunks of each phase, over all groups and ranks: float64 [F], NaN where there are none.

    The trajectories need `actions.extras["value"]`.

    Args:
        reduce: sums a tensor over ranks.
    """
    sums_2F = torch.zeros(2, len(label.phases), dtype=torch.float64)
    for trajectory in (t for group in groups for t in group.trajectories):
        credit_N = credit(trajectory.actions.extras["value"], trajectory.reward).double()
        sums_2F.index_add_(1, label(trajectory), torch.stack([credit_N, torch.ones_like(credit_N)]))
    credit_F, chunks_F = reduce(sums_2F)
    return torch.where(chunks_F > 0, credit_F / chunks_F, math.nan)
