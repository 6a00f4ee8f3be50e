"""Scores of single chunks as pure functions of the distributions their tokens were sampled from: free at the rollout.

Shapes: see `vla_rl.types`, and
    B  action bins
"""

from __future__ import annotations

import torch
from torch import Tensor

from vla_rl.types import executed_mask


def token_entropy(logprob_NLAB: Tensor) -> Tensor:
    """Entropy of each token's distribution, -sum p log p, in nats: [N, L, A]."""
    return torch.special.entr(logprob_NLAB.exp()).sum(-1)


def token_score_sq(logprob_NLAB: Tensor, token_NLA: Tensor) -> Tensor:
    """Squared norm of the score of each sampled token with respect to the logits: [N, L, A].

        || e_a - p ||^2 = 1 - 2 p_a + sum_b p_b^2        d log p_a / d logits = e_a - p

    It bounds the gradient that the token can cause from below the last layer.

    Example: p = (.5, .5) -> 1 - 1 + .5 = .5, whichever token was drawn.
    """
    p_NLAB = logprob_NLAB.exp()
    p_NLA = p_NLAB.gather(-1, token_NLA[..., None])[..., 0]
    return 1 - 2 * p_NLA + p_NLAB.square().sum(-1)


def chunk_entropy(entropy_NLA: Tensor, executed_N: Tensor) -> Tensor:
    """Mean token entropy over each chunk's executed steps, float [N]."""
    return _executed(entropy_NLA, executed_N).sum((1, 2)) / (executed_N * entropy_NLA.shape[2])


def chunk_score_norm(score_sq_NLA: Tensor, executed_N: Tensor, advantage_N: Tensor) -> Tensor:
    """Norm of each chunk's score at the last layer, |A| sqrt(sum of ||e_a - p||^2) over executed tokens: [N]."""
    return advantage_N.abs() * _executed(score_sq_NLA, executed_N).sum((1, 2)).sqrt()


def _executed(value_NLA: Tensor, executed_N: Tensor) -> Tensor:
    return value_NLA * executed_mask(executed_N, value_NLA.shape[1])[..., None]
