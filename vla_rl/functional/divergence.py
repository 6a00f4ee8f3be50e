"""How differently successes and failures act in each phase, and the keep probabilities made of it, as pure functions.

PCM, "Learn Where Outcomes Diverge", arXiv 2605.16154. Shapes: see `vla_rl.types`, and
    F  phases
    D  dimensions of the vector that stands for a chunk's actions

Where the defaults leave the paper's letter, and why (`mask=pcm_paper_literal` keeps it):
1. An action is the mean over the executed steps of a chunk (`mean`); the paper flattens the chunk (`flat`), and 56
   dimensions of noise look like divergence where few chunks are compared.
2. The divergence is taken inside each mixed group and then averaged: pooling tasks would measure which task is easy,
   not which behaviour matters.
3. Buffers are collapsed by their mean, as the text says; Eq 8 sums them, which favours phases that are often seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vla_rl.functional.phases import Labeller, chunk_action, trajectory_phases
from vla_rl.types import RolloutGroup

Vector = Callable[[Tensor, Tensor], Tensor]  # action_NLA, executed_N -> [N, D]
GroupWeight = Callable[[Tensor, Tensor], Tensor]  # trajectories that succeed, that fail -> weight


def flat_chunk(action_NLA: Tensor, executed_N: Tensor) -> Tensor:
    """All predicted actions of a chunk one after the other, float [N, L * A]."""
    return action_NLA.flatten(1)


VECTORS: dict[str, Vector] = {"mean": chunk_action, "flat": flat_chunk}


def equal_weight(successes: Tensor, failures: Tensor) -> Tensor:
    """Every group counts the same."""
    return torch.ones_like(successes)


def harmonic_weight(successes: Tensor, failures: Tensor) -> Tensor:
    """n+ n- / (n+ + n-): how precisely a group of n+ successes and n- failures knows the difference of two means."""
    return successes * failures / (successes + failures).clamp(min=1)


GROUP_WEIGHTS: dict[str, GroupWeight] = {"equal": equal_weight, "harmonic": harmonic_weight}


def divergence(vector_ND: Tensor, phase_N: Tensor, success_N: Tensor, phases: int) -> Tensor:
    """How differently successes and failures of ONE group act in each phase, PCM Eq 5.

        C_c = || E[a | r=1, phase=c] - E[a | r=0, phase=c] ||

    Args:
        vector_ND: what stands for each chunk's actions, all chunks of the group's trajectories.
        phase_N: the chunks' phases.
        success_N: bool, the outcome of the trajectory a chunk belongs to.
        phases: how many there are, F.

    Returns:
        [F]; NaN where successes or failures have no chunk in the phase.
    """
    scores = []
    for phase in range(phases):
        succeeded = vector_ND[(phase_N == phase) & success_N]
        failed = vector_ND[(phase_N == phase) & ~success_N]
        scores.append((succeeded.mean(0) - failed.mean(0)).norm())  # the mean of no rows is NaN
    return torch.stack(scores)


def debiased_divergence(
    vector_ND: Tensor, phase_N: Tensor, success_N: Tensor, trajectory_N: Tensor, phases: int
) -> Tensor:
    """`divergence` without what noise alone would give, with trajectories as the units that vary independently.

        C_c = max(0, D^2 - tr S+ / n+ - tr S- / n-)^(1/2)

    D is the distance between the mean of the n+ successes' and of the n- failures' own means in the phase, S+ and S-
    the (unbiased) covariances of these means over trajectories. D^2 overestimates the true squared distance by just the
    two terms taken away: ten trajectories of pure noise reach D = .3 on 7-dimensional actions.

    Args:
        trajectory_N: which trajectory a chunk belongs to.

    Returns:
        [F]; NaN where fewer than two successes or failures visit the phase: one has no spread to estimate.
    """
    scores = []
    for phase in range(phases):
        means, noise = [], torch.zeros(())
        for outcome in (True, False):
            rows = (phase_N == phase) & (success_N == outcome)
            unit_MD = torch.stack(
                [vector_ND[rows & (trajectory_N == i)].mean(0) for i in trajectory_N[rows].unique()]
                or [torch.full_like(vector_ND[0], math.nan)]
            )
            means.append(unit_MD.mean(0))
            variance_D = unit_MD.var(0) if len(unit_MD) > 1 else torch.full_like(unit_MD[0], math.nan)
            noise = noise + variance_D.sum() / len(unit_MD)
        squared = (means[0] - means[1]).square().sum() - noise
        scores.append(squared.clamp(min=0.0).sqrt())  # NaN stays NaN
    return torch.stack(scores)


def mean_divergence(
    groups: Sequence[RolloutGroup],
    reduce: Callable[[Tensor], Tensor],
    *,
    label: Labeller = trajectory_phases,
    vector: Vector = chunk_action,
    group_weight: GroupWeight = equal_weight,
    debias: bool = False,
) -> Tensor:
    """C_c of every phase, averaged over the mixed groups of all ranks that have both outcomes in it.

    Args:
        reduce: sums a tensor over ranks.
        group_weight: of a group in the average, from the trajectories of each outcome that visit the phase.
        debias: take away what noise alone would give.

    Returns:
        float64 [2, F]: with and without the gripper dimension; NaN where no group has both outcomes.
    """
    phases = len(label.phases)
    sums = torch.zeros(2, phases, dtype=torch.float64)
    counts = torch.zeros(2, phases, dtype=torch.float64)
    for group in groups:
        if not group.mixed:
            continue
        trajectories = group.trajectories
        phase_N = torch.cat([label(t) for t in trajectories])
        success_N = torch.cat([torch.full((len(t),), t.success) for t in trajectories])
        trajectory_N = torch.cat([torch.full((len(t),), i) for i, t in enumerate(trajectories)])
        scores = []
        for dims in (slice(None), slice(-1)):  # the gripper is the last dimension
            vector_ND = torch.cat([vector(t.actions.action_NLA[..., dims], t.executed_N) for t in trajectories])
            if debias:
                scores.append(debiased_divergence(vector_ND, phase_N, success_N, trajectory_N, phases))
            else:
                scores.append(divergence(vector_ND, phase_N, success_N, phases))
        score = torch.stack(scores)
        weight_F = group_weight(*visits(phase_N, success_N, trajectory_N, phases))
        sums += weight_F * score.nan_to_num(nan=0.0)
        counts += weight_F * ~score.isnan()
    # 0 / 0 is NaN: nobody has seen both outcomes
    sums, counts = reduce(torch.stack([sums, counts]))
    return sums / counts


def visits(phase_N: Tensor, success_N: Tensor, trajectory_N: Tensor, phases: int) -> tuple[Tensor, Tensor]:
    """How many successes and how many failures of a group visit each phase, both float64 [F]."""
    counts = torch.zeros(2, phases, dtype=torch.float64)
    for phase in range(phases):
        for row, outcome in enumerate((True, False)):
            counts[row, phase] = len(trajectory_N[(phase_N == phase) & (success_N == outcome)].unique())
    return counts[0], counts[1]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


COLLAPSES: dict[str, Callable[[Sequence[float]], float]] = {"mean": mean, "sum": math.fsum}


def collapse(
    buffers: Sequence[Sequence[float]],
    last_score: Sequence[float],
    how: Callable[[Sequence[float]], float] = mean,
) -> list[float]:
    """One score per phase: the mean (or sum, Eq 8) of its buffer; an empty one has the last score (NaN: never seen)."""
    return [how(b) if b else last for b, last in zip(buffers, last_score, strict=True)]


def keep_probability(score_F: Tensor, floor: float) -> Tensor:
    """Relative weights of the phases, p_c = max(floor, S_c / max S) (PCM section 4.3).

    Args:
        score_F: collapsed divergence, NaN for a phase never seen; at least one is above 0.
        floor: the least weight, in (0, 1].

    Returns:
        [F] in [floor, 1]; a phase never seen gets the floor. A weight for a draw, not a probability of inclusion.

    Example:
        >>> keep_probability(torch.tensor([1.0, 0.5, 0.3, 0.05, float("nan")]), floor=0.1)
        tensor([1.0000, 0.5000, 0.3000, 0.1000, 0.1000])
    """
    score_F = score_F.nan_to_num(nan=0.0)
    assert score_F.max() > 0, "no phase has a score"
    return (score_F / score_F.max()).clamp(min=floor)


def cumulative_share(score_F: Tensor, chunks_F: Tensor) -> tuple[Tensor, Tensor]:
    """The score captured by the best chunks, when every chunk has the score of its phase (PCM Fig 8, Appendix D).

    Returns:
        fraction of the chunks kept and share of the total score captured, both float64 [F + 1] from 0 to 1: the corners
        of a curve that is straight within a phase, best phase first. All on the diagonal where nothing has a score.
    """
    score_F, chunks_F = score_F.nan_to_num(nan=0.0).double(), chunks_F.double()
    order = score_F.argsort(descending=True, stable=True)
    captured_F, chunks_F = (score_F * chunks_F)[order], chunks_F[order]
    if not captured_F.sum() > 0:
        captured_F = chunks_F
    zero = torch.zeros(1, dtype=torch.float64)
    fraction, share = (torch.cat([zero, x.cumsum(0)]) / x.sum().clamp(min=1e-300) for x in (chunks_F, captured_F))
    return fraction, share


def knee(fraction: Tensor, share: Tensor) -> int:
    """The corner of a curve from `cumulative_share` that lies farthest above the diagonal (Kneedle, Satopaa 2011); the
    last one, where everything is kept, when none does."""
    above = share - fraction
    return int(above.argmax()) if above.max() > 1e-9 else len(fraction) - 1
