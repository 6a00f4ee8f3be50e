"""Advantages of a group of rollouts, as pure functions of its rewards. Shapes: see `vla_rl.types`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Advantage = Callable[[Tensor, float], Tensor]  # reward_G, eps -> advantage_G


def group_advantage(reward_G: Tensor, eps: float) -> Tensor:
    """Rewards relative to the group, A_i = (r_i - mean r) / (std r + eps), PCM (arXiv 2605.16154) Eq 1.

    Args:
        reward_G: rewards of G trajectories of one task from one initial state.
        eps: added to the (population) standard deviation.

    Returns:
        advantage_G; exactly zero when all rewards are equal.

    Example:
        >>> group_advantage(torch.tensor([1.0, 0.0, 0.0, 0.0]), eps=0.0)  # mean 1/4, std sqrt(3)/4
        tensor([ 1.7321, -0.5774, -0.5774, -0.5774])
    """
    assert reward_G.ndim == 1 and len(reward_G), f"rewards of one group, got shape {tuple(reward_G.shape)}"
    if reward_G.max() == reward_G.min():  # rounding of the mean, divided by eps, would not be zero
        return torch.zeros_like(reward_G)
    return (reward_G - reward_G.mean()) / (reward_G.std(correction=0) + eps)


def group_advantage_unbiased(reward_G: Tensor, eps: float) -> Tensor:
    """`group_advantage` with the sample standard deviation (divided by G - 1)."""
    if reward_G.max() == reward_G.min():
        return torch.zeros_like(reward_G)
    return (reward_G - reward_G.mean()) / (reward_G.std() + eps)


def rloo_advantage(reward_G: Tensor, eps: float) -> Tensor:
    """Rewards relative to the others, A_i = r_i - mean of r_j over j != i (RLOO, arXiv 2402.14740). No `eps`: no
    division.

    Example: rewards 1 0 0 0 -> 1 -1/3 -1/3 -1/3.
    """
    return (reward_G - reward_G.mean()) * (len(reward_G) / (len(reward_G) - 1))


def dr_grpo_advantage(reward_G: Tensor, eps: float) -> Tensor:
    """Rewards relative to the group's mean alone, A_i = r_i - mean r (Dr. GRPO, arXiv 2503.20783): groups that are
    nearly all success or all failure are not magnified. No `eps`: no division."""
    return reward_G - reward_G.mean()


def ngrpo_advantage(reward_G: Tensor, eps: float) -> Tensor:
    """Rewards relative to the group and one imagined member with the highest reward (NGRPO, arXiv 2509.18851).

        A_i = (r_i - mean R) / (std R + eps),  R = r and r_max, sample standard deviation

    Groups that fail throughout get a negative advantage (with `grpo.group_filter=keep`; else they are dropped). r_max
    is 1, or the best of the group where rewards are shaped above 1.

    Example: G = 8, one success -> 1.76 and -.50; all fail -> -1/3.
    """
    with_best = torch.cat([reward_G, reward_G.max().clamp(min=1.0)[None]])
    if with_best.max() == with_best.min():
        return torch.zeros_like(reward_G)
    return (reward_G - with_best.mean()) / (with_best.std() + eps)


def raft_advantage(reward_G: Tensor, eps: float) -> Tensor:
    """The positive part of `group_advantage`, max(0, A_i): learn from what went better than the group, leave the rest
    (RAFT++, arXiv 2504.11343, which clips as PPO does). Rare successes still count most.

    Example: rewards 1 0 0 0 -> 1.73 0 0 0.
    """
    return group_advantage(reward_G, eps).clamp(min=0.0)


def critic_advantage(reward_G: Tensor, eps: float) -> Tensor:
    """Zeros: a critic gives every chunk its own advantage when all groups are there (`vla_rl.functional.gae`), or a
    teacher every number (`vla_rl.functional.distillation`)."""
    return torch.zeros_like(reward_G)


ADVANTAGES: dict[str, Advantage] = {
    "grpo": group_advantage,
    "grpo_unbiased": group_advantage_unbiased,
    "rloo": rloo_advantage,
    "dr_grpo": dr_grpo_advantage,
    "ngrpo": ngrpo_advantage,
    "raft": raft_advantage,
    "gae": critic_advantage,
    "distill": critic_advantage,
}
