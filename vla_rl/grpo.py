"""GRPO as pure functions: group advantages, token weights, the clipped loss. Shapes: see `vla_rl.types`.

The loss is a plain weighted SUM over tokens. The weights divide by global counts, so adding the sums of micro-batches
and of ranks gives exactly the loss of the whole batch, however unequal the parts are.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LossNorm = Literal["traj_mean", "token_mean"]


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


def token_weight(
    token_mask_NLA: Tensor, trajectory_N: Tensor, *, trajectories: int, tokens: int, norm: LossNorm
) -> Tensor:
    """The coefficient of each token's loss; all coefficients of a step, over its ranks, add up to 1.

    `traj_mean`, the default:  w = 1 / (kept tokens of the token's trajectory) / (trajectories with kept tokens)
    `token_mean`:              w = 1 / (kept tokens)

    Args:
        token_mask_NLA: bool, tokens that count. All rows of a trajectory must be here: weigh first, then cut into
            micro-batches.
        trajectory_N: which trajectory a row belongs to.
        trajectories: trajectories with at least one counted token, over all ranks.
        tokens: counted tokens, over all ranks.

    Returns:
        float32 [N, L, A], zero where the mask is False.

    Raises:
        ValueError: for an unknown `norm`.
    """
    assert len(token_mask_NLA) == len(trajectory_N)
    if norm == "token_mean":
        return token_mask_NLA.float() / tokens
    if norm == "traj_mean":
        tokens_N = token_mask_NLA.flatten(1).sum(1)
        of_trajectory = torch.zeros(int(trajectory_N.max()) + 1, dtype=tokens_N.dtype, device=tokens_N.device)
        of_trajectory.index_add_(0, trajectory_N, tokens_N)
        share_N = 1.0 / (of_trajectory[trajectory_N].clamp(min=1) * trajectories)
        return token_mask_NLA * share_N[:, None, None]
    raise ValueError(f"no loss normalisation named {norm!r}; choose traj_mean or token_mean (grpo.loss_norm=traj_mean)")


def clipped_loss(
    logprob_NLA: Tensor,
    old_logprob_NLA: Tensor,
    advantage_N: Tensor,
    weight_NLA: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The PPO-clipped policy-gradient loss, summed with weights (PPO, arXiv 1707.06347, Eq 7; two sides as in DAPO).

        loss = - sum_t w_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A)     rho_t = pi(t) / pi_old(t)

    Args:
        logprob_NLA: of the policy that learns, differentiable.
        old_logprob_NLA: of the policy that acted.
        advantage_N: one advantage per chunk, that of its trajectory.
        weight_NLA: from `token_weight`; a token of weight 0 has no influence, whatever its log-probabilities.
        clip_low, clip_high: how far the ratio may leave 1 before its gradient stops.

    Returns:
        The loss (a scalar), and detached statistics, weighted sums like the loss, so that they add up over
        micro-batches: `clip_fraction` (share of tokens whose gradient the clip stops) and `log_ratio_abs`
        (mean |log pi - log pi_old|).
    """
    assert logprob_NLA.shape == old_logprob_NLA.shape == weight_NLA.shape and logprob_NLA.ndim == 3
    assert advantage_N.shape == logprob_NLA.shape[:1]
    log_ratio_NLA = (logprob_NLA - old_logprob_NLA).masked_fill(weight_NLA == 0, 0.0)
    ratio_NLA = log_ratio_NLA.exp()
    gain_NLA = ratio_NLA * advantage_N[:, None, None]
    clipped_gain_NLA = ratio_NLA.clamp(1 - clip_low, 1 + clip_high) * advantage_N[:, None, None]
    loss = -(weight_NLA * torch.minimum(gain_NLA, clipped_gain_NLA)).sum()
    with torch.no_grad():
        stats = {
            "clip_fraction": (weight_NLA * (clipped_gain_NLA < gain_NLA)).sum(),
            "log_ratio_abs": (weight_NLA * log_ratio_NLA.abs()).sum(),
        }
    return loss, stats
