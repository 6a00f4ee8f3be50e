"""Which trajectories an iteration trains on, as pure functions: filters of whole groups, and down-sampling in them.

Advantages are computed over the whole group first; these only decide which trajectories are trained on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vla_rl.types import RolloutGroup

GroupFilter = Callable[[RolloutGroup], bool]  # True: train on the group


def keep_all(group: RolloutGroup) -> bool:
    """Every group, those whose advantages are all zero included: they cost a forward and a backward each."""
    return True


def has_spread(group: RolloutGroup) -> bool:
    """Groups whose rewards differ. The others have zero advantages, and would change nothing."""
    return group.has_spread


GROUP_FILTERS: dict[str, GroupFilter] = {
    "drop": has_spread,
    "keep": keep_all,
    "resample": has_spread,  # and what it refuses is collected again, from another initial state (`datamodule`)
}


def best_and_worst(reward_G: Tensor, keep: int) -> Tensor:
    """Half of `keep` from the best, half from the worst: what maximises the variance of rewards that are 0 or 1 (PODS,
    arXiv 2504.13818).

    Args:
        keep: even, at most G.

    Returns:
        sorted int64 indices; among equal rewards, those first in the group.

    Example: rewards 0 1 0 1 1 0, keep 4 -> 0 1 2 3 (the successes 1 3, the failures 0 2).
    """
    half = keep // 2
    best = reward_G.argsort(descending=True, stable=True)[:half]
    rest = torch.ones(len(reward_G), dtype=torch.bool)
    rest[best] = False
    rest = rest.nonzero().squeeze(1)
    worst = rest[reward_G[rest].argsort(stable=True)[:half]]
    return torch.cat([best, worst]).sort().values
