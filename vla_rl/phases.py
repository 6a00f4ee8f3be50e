"""Probabilistic chunk masking as pure functions: phases, divergence, keep probabilities, selection.

PCM, "Learn Where Outcomes Diverge", arXiv 2605.16154. Shapes: see `vla_rl.types`, and
    F  phases, in the order of `PHASES`

Where we leave the paper's letter, and why:
1. `pre_grasp` is positional (`pre_lo` = 0): with a binary gripper and 8-step chunks the paper's 0.1 leaves at most one
   such chunk per closure, while its own Fig 6 shows 3 to 5.
2. An action is the mean over the executed steps of a chunk; the divergence is taken inside each mixed group and then
   averaged: pooling tasks would measure which task is easy, not which behaviour matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vla_rl.types import Trajectory

PHASES = ("approach", "pre_grasp", "active_grip", "release_ramp", "tail")
APPROACH, PRE_GRASP, ACTIVE_GRIP, RELEASE_RAMP, TAIL = range(len(PHASES))

SUSTAINED = 0.75  # close fraction of a chunk inside a sustained grip
CLOSED = 0.5  # close fraction from which a chunk counts as gripping
REACH = 3  # chunks before and after a sustained grip that belong to it


def gripper_fraction(close_NL: Tensor, executed_N: Tensor) -> Tensor:
    """The share of each chunk's executed steps that command the gripper to close.

    Args:
        close_NL: bool, the command closes; steps that were not executed are ignored.
        executed_N: executed steps, at least 1.

    Returns:
        float32 [N] in [0, 1].
    """
    executed_NL = torch.arange(close_NL.shape[1]) < executed_N[:, None]
    return (close_NL & executed_NL).sum(1) / executed_N


def label_phases(fraction_N: Tensor, pre_lo: float = 0.0) -> Tensor:
    """The phase of each chunk, from the executed gripper commands alone, never from the outcome (PCM section 4.1).

    Sustained grips are maximal runs of fraction >= 0.75. In order of priority:
        active_grip   fraction >= 0.5
        pre_grasp     within 3 chunks before a sustained grip, pre_lo <= fraction < 0.5
        release_ramp  within 3 chunks after one
        approach      a sustained grip comes later, or there is none at all
        tail          the rest

    Args:
        fraction_N: from `gripper_fraction`, one trajectory in order.
        pre_lo: 0 labels `pre_grasp` by position alone; the paper's text has 0.1.

    Returns:
        int64 [N], indices into `PHASES`.

    Example:
        >>> label_phases(torch.tensor([0.0, 0, 0, 0, 1, 1, 0])).tolist()
        [0, 1, 1, 1, 2, 2, 3]
    """
    chunks = len(fraction_N)
    sustained = [f >= SUSTAINED for f in fraction_N.tolist()]
    starts = [n for n in range(chunks) if sustained[n] and (n == 0 or not sustained[n - 1])]
    ends = [n for n in range(chunks) if sustained[n] and (n + 1 == chunks or not sustained[n + 1])]

    def label(n: int, fraction: float) -> int:
        if fraction >= CLOSED:
            return ACTIVE_GRIP
        if fraction >= pre_lo and any(0 < start - n <= REACH for start in starts):
            return PRE_GRASP
        if any(0 < n - end <= REACH for end in ends):
            return RELEASE_RAMP
        if not starts or n < starts[-1]:
            return APPROACH
        return TAIL

    return torch.tensor([label(n, f) for n, f in enumerate(fraction_N.tolist())], dtype=torch.int64)


def trajectory_phases(trajectory: Trajectory) -> Tensor:
    """The phase of each chunk of a trajectory, int64 [N]."""
    return label_phases(gripper_fraction(trajectory.close_NL, trajectory.executed_N))


def chunk_action(action_NLA: Tensor, executed_N: Tensor) -> Tensor:
    """The mean normalised action over each chunk's executed steps, float [N, A]."""
    executed_NL = torch.arange(action_NLA.shape[1]) < executed_N[:, None]
    return (action_NLA * executed_NL[..., None]).sum(1) / executed_N[:, None]


def divergence(action_NA: Tensor, phase_N: Tensor, success_N: Tensor) -> Tensor:
    """How differently successes and failures of ONE group act in each phase, PCM Eq 5.

        C_c = || E[a | r=1, phase=c] - E[a | r=0, phase=c] ||

    Args:
        action_NA: from `chunk_action`, all chunks of the group's trajectories.
        phase_N: from `label_phases`.
        success_N: bool, the outcome of the trajectory a chunk belongs to.

    Returns:
        [F]; NaN where successes or failures have no chunk in the phase.
    """
    scores = []
    for phase in range(len(PHASES)):
        succeeded = action_NA[(phase_N == phase) & success_N]
        failed = action_NA[(phase_N == phase) & ~success_N]
        scores.append((succeeded.mean(0) - failed.mean(0)).norm())  # the mean of no rows is NaN
    return torch.stack(scores)


def collapse(buffers: Sequence[Sequence[float]], last_score: Sequence[float]) -> list[float]:
    """One score per phase: the mean of its buffer; an empty buffer carries the last score on (NaN: never seen)."""
    return [math.fsum(b) / len(b) if b else last for b, last in zip(buffers, last_score, strict=True)]


def keep_probability(score_F: Tensor, floor: float) -> Tensor:
    """Relative weights of the phases, p_c = max(floor, S_c / max S) (PCM section 4.3).

    Args:
        score_F: collapsed divergence, NaN for a phase never seen; at least one is above 0.
        floor: the least weight, in (0, 1].

    Returns:
        [F] in [floor, 1]; a phase never seen gets the floor. A weight for `select_chunks`, not a probability of
        inclusion.

    Example:
        >>> keep_probability(torch.tensor([1.0, 0.5, 0.3, 0.05, float("nan")]), floor=0.1)
        tensor([1.0000, 0.5000, 0.3000, 0.1000, 0.1000])
    """
    score_F = score_F.nan_to_num(nan=0.0)
    assert score_F.max() > 0, "no phase has a score"
    return (score_F / score_F.max()).clamp(min=floor)


def select_chunks(weight_N: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """Weighted sampling without replacement: draw one chunk in proportion to the weights, then the next among the rest.

    By the Gumbel top-k trick (Kool et al., arXiv 1903.06059): the k largest of log w + Gumbel noise are such a draw.

    Args:
        weight_N: >= 0; a chunk of weight 0 is never drawn.
        budget: chunks to draw at most.
        generator: its device must be that of `weight_N`.

    Returns:
        sorted int64 indices, min(budget, chunks of positive weight) of them.
    """
    # -log(Exponential) is Gumbel noise; torch draws exponentials that are never 0, so no key is infinite
    noise_N = -torch.empty_like(weight_N, dtype=torch.float64).exponential_(generator=generator).log()
    key_N = weight_N.double().log() + noise_N
    drawable = int((weight_N > 0).sum())
    return key_N.topk(min(budget, drawable)).indices.sort().values
