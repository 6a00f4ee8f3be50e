"""The masked GRPO loss as pure functions: token weights and the clipped loss. Shapes: see `vla_rl.types`.

The loss is a plain weighted SUM over tokens. The weights divide by global counts, so adding the sums of micro-batches
and of ranks gives exactly the loss of the whole batch, however unequal the parts are.

Two choices are independent: how the tokens of a step are weighed (`LossNorm`), and whether trajectories that the
iteration planned but does not train on, because their group was dropped, count in the divisor as zeros (`Normaliser`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LossNorm = Literal["traj_mean", "token_mean", "const"]
Normaliser = Literal["kept", "planned"]
MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: beyond every clip, and far from the largest float32, exp(88)


def planned_counts(
    tokens: float, steps: float, *, planned_trajectories: float, steps_of_trajectory: float
) -> tuple[float, float]:
    """What a step's weights divide by if dropped groups count as zeros (`grpo.normalise_by=planned`).

    The dropped trajectories count with the control steps that the iteration's trajectories have on average, and as if
    the mask had kept the same share of their tokens:

        tokens = (tokens of this step) * (planned trajectories) * (steps of a trajectory) / (steps of this step)

    Args:
        tokens: shares of the counted tokens of this step, over all ranks.
        steps: control steps of the step's trajectories, those of chunks that a mask left out included.
        planned_trajectories: that a step of this iteration has if none is dropped.
        steps_of_trajectory: mean over all trajectories of the iteration, dropped ones included.

    Returns:
        `trajectories` and `tokens` for `token_weight`.

    Example: a step was planned with 2 trajectories of 50 steps on average; one of 40 steps is left, with 140 of its 280
    tokens. Its tokens divide by 2 trajectories, or by 140 * 2 * 50 / 40 = 350 tokens.
    """
    return planned_trajectories, tokens * planned_trajectories * steps_of_trajectory / steps


def token_weight(
    token_mask_NLA: Tensor,
    trajectory_N: Tensor,
    *,
    trajectories: float,
    tokens: float,
    norm: LossNorm,
    longest: int | None = None,
    weight_N: Tensor | None = None,
    share_N: Tensor | None = None,
) -> Tensor:
    """The coefficient of each token's loss. Where every row counts once, those of `traj_mean` and of `token_mean` add
    up to 1 over a step and its ranks.

    `traj_mean`, the default:  w = weight / (shares of its trajectory's kept tokens) / trajectories
    `token_mean`:              w = weight / tokens
    `const`:                   w = weight / (tokens of the longest episode) / trajectories, Dr. GRPO (arXiv 2503.20783)

    Args:
        token_mask_NLA: bool, tokens that count. All rows of a trajectory must be here: weigh first, then cut into
            micro-batches.
        trajectory_N: which trajectory a row belongs to.
        trajectories, tokens: of the step, over all ranks: trajectories with at least one counted token, and the shares
            of all counted tokens; or as many as were planned (`planned_counts`), which `const` needs to be constant.
        longest: tokens of the longest possible episode; `const` needs it.
        weight_N, share_N: what each token of a row counts, and counts in the sums above; None = 1. They differ from 1
            where a mask corrects for its draw (`vla_rl.functional.sampling.ESTIMATORS`).

    Returns:
        float32 [N, L, A], zero where the mask is False.

    Raises:
        ValueError: for an unknown `norm`.
    """
    assert len(token_mask_NLA) == len(trajectory_N)
    once_N = torch.ones(len(trajectory_N), device=token_mask_NLA.device)
    weight_N = once_N if weight_N is None else weight_N
    if norm == "token_mean":
        return token_mask_NLA * (weight_N / tokens)[:, None, None]
    if norm == "const":
        assert longest is not None, "const divides by the longest episode's tokens"
        return token_mask_NLA * (weight_N / (longest * trajectories))[:, None, None]
    if norm == "traj_mean":
        tokens_N = token_mask_NLA.flatten(1).sum(1) * (once_N if share_N is None else share_N)
        of_trajectory = torch.zeros(int(trajectory_N.max()) + 1, dtype=tokens_N.dtype, device=tokens_N.device)
        of_trajectory.index_add_(0, trajectory_N, tokens_N)
        of_row_N = of_trajectory[trajectory_N]
        of_row_N = of_row_N.masked_fill(of_row_N == 0, 1.0)  # no token of it counts
        return token_mask_NLA * (weight_N * (1.0 / (of_row_N * trajectories)))[:, None, None]
    raise ValueError(
        f"no loss normalisation named {norm!r}; choose traj_mean, token_mean or const (grpo.loss_norm=traj_mean)"
    )


def one_ratio_per_chunk(
    logprob_NLA: Tensor, old_logprob_NLA: Tensor, weight_NLA: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `clipped_loss` takes, with one probability ratio per chunk in place of one per number (pi_RL, arXiv
    2510.25889): the log-probabilities of the numbers that count are added up, and so are their weights.

    Returns:
        Log-probability, the old one, and weight of each chunk, [N, 1, 1].

    Example: log ratios .1 and -.3 with weights .2 and .2, and one of weight 0 -> log ratio -.2 with weight .4.
    """
    counts_NLA = weight_NLA != 0
    summed = [torch.where(counts_NLA, value, 0.0).sum((1, 2), keepdim=True) for value in (logprob_NLA, old_logprob_NLA)]
    return summed[0], summed[1], weight_NLA.sum((1, 2), keepdim=True)


def clipped_loss(
    logprob_NLA: Tensor,
    old_logprob_NLA: Tensor,
    advantage: Tensor,
    weight_NLA: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The PPO-clipped policy-gradient loss, summed with weights (PPO, arXiv 1707.06347, Eq 7; two sides as in DAPO).

        loss = - sum_t w_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A)     rho_t = pi(t) / pi_old(t)

    The minimum has no bound where A < 0 and rho is large: one token of log-ratio 5 weighs as much as 148 others. The
    dual clip (arXiv 1912.09729, Eq 5) takes max(minimum, dual_clip A) there.

    log rho is limited to +-20 before it is exponentiated. Without the limit, exp overflows at 88, and the gradient is
    NaN even where the clip makes it zero, because 0 times infinity is NaN. Beyond the limit the gradient is zero.

    Args:
        logprob_NLA: of the policy that learns, differentiable.
        old_logprob_NLA: of the policy that acted.
        advantage: one per chunk [N], that of its trajectory or its own; per control step [N, L]; or per number
            [N, L, A].
        weight_NLA: from `token_weight`; a token of weight 0 has no influence, whatever its log-probabilities.
        clip_low, clip_high: how far the ratio may leave 1 before its gradient stops.
        dual_clip: c > 1, the ratio at which the gradient of a token of negative advantage stops; None = never.

    Returns:
        The loss (a scalar), and detached statistics, weighted sums like the loss, so that they add up over
        micro-batches: `clip_fraction` (share of tokens whose gradient the clip stops) and `log_ratio_abs`
        (mean |log pi - log pi_old|).
    """
    assert logprob_NLA.shape == old_logprob_NLA.shape == weight_NLA.shape
    assert logprob_NLA.ndim == 3
    assert advantage.shape in [logprob_NLA.shape[:axes] for axes in (1, 2, 3)]
    log_ratio_NLA = (logprob_NLA - old_logprob_NLA).masked_fill(weight_NLA == 0, 0.0)
    advantage_NLA = advantage.view(*advantage.shape, *[1] * (3 - advantage.ndim))
    ratio_NLA = log_ratio_NLA.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    gain_NLA = ratio_NLA * advantage_NLA
    clipped_gain_NLA = ratio_NLA.clamp(1 - clip_low, 1 + clip_high) * advantage_NLA
    surrogate_NLA = torch.minimum(gain_NLA, clipped_gain_NLA)
    stopped_NLA = clipped_gain_NLA < gain_NLA
    if dual_clip is not None:
        least_NLA = dual_clip * advantage_NLA
        too_bad_NLA = (advantage_NLA < 0) & (surrogate_NLA < least_NLA)
        surrogate_NLA = torch.where(too_bad_NLA, least_NLA, surrogate_NLA)
        stopped_NLA = stopped_NLA | too_bad_NLA
    loss = -(weight_NLA * surrogate_NLA).sum()
    with torch.no_grad():
        stats = {
            "clip_fraction": (weight_NLA * stopped_NLA).sum(),
            "log_ratio_abs": (weight_NLA * log_ratio_NLA.abs()).sum(),
        }
    return loss, stats
