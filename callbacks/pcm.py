"""Probabilistic chunk masking (PCM, arXiv 2605.16154): keep chunks of the phases where outcomes diverge.

An iteration appends each phase's success-failure divergence C_c to a buffer. From the first iteration that has one, and
then every `refresh_every` iterations, the buffers become keep probabilities. The maths is in `vla_rl.phases`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from callbacks.base import ChunkMask, check_count
from vla_rl.phases import (
    PHASES,
    chunk_action,
    collapse,
    divergence,
    keep_probability,
    select_chunks,
    trajectory_phases,
)
from vla_rl.types import RolloutGroup, Trajectory

STATE = ("buffers", "last_score", "keep_prob", "iterations_to_refresh", "history")  # what a resume needs


class PCM(ChunkMask):
    """Keeps `budget` chunks of each trajectory, drawn without replacement in proportion to their phase's weight.

    Logs, per phase: `pcm/divergence` and `pcm/divergence_no_gripper` (C_c of this iteration's rollouts; absent when no
    mixed group visits the phase with both outcomes) and `pcm/keep_prob`.

    Args:
        budget: chunks kept of a trajectory, at most.
        floor: the least relative weight of a phase, in (0, 1].
        refresh_every: iterations between two refreshes of the weights.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(self, budget: int = 12, floor: float = 0.1, refresh_every: int = 5) -> None:
        super().__init__(budget)
        if not isinstance(floor, float | int) or not 0 < floor <= 1:
            raise ValueError(f"floor must be above 0 and at most 1, got {floor!r} (mask.floor=0.1)")
        check_count("refresh_every", refresh_every, "iteration", "mask.refresh_every=5")
        self.floor, self.refresh_every = floor, refresh_every
        self.buffers: list[list[float]] = [[] for _ in PHASES]
        self.last_score = [math.nan] * len(PHASES)  # at the last refresh; NaN: never seen
        self.keep_prob = [1.0] * len(PHASES)  # uniform until there is a score
        self.iterations_to_refresh = 0  # 0 and no score yet: wait for the first one
        self.history: list[dict[str, list[float]]] = []  # of every iteration, for plots

    def update(self, groups: Sequence[RolloutGroup], reduce: Callable[[Tensor], Tensor]) -> None:
        full_F, no_gripper_F = mean_divergence(groups, reduce).tolist()
        for buffer, value in zip(self.buffers, full_F, strict=True):
            if not math.isnan(value):
                buffer.append(value)
        self._refresh()
        self.history.append(
            {"divergence": full_F, "divergence_no_gripper": no_gripper_F, "keep_prob": list(self.keep_prob)}
        )

    def _refresh(self) -> None:
        if self.iterations_to_refresh > 0:
            self.iterations_to_refresh -= 1
        if self.iterations_to_refresh > 0:
            return
        scored = any(value > 0 for buffer in self.buffers for value in buffer)
        if scored:
            self.last_score = collapse(self.buffers, self.last_score)
            self.keep_prob = self.weights(torch.tensor(self.last_score, dtype=torch.float64)).tolist()
        if not all(math.isnan(value) for value in self.last_score):  # one counter runs from the first score on
            self.iterations_to_refresh = self.refresh_every
            self.buffers = [[] for _ in PHASES]

    def weights(self, score_F: Tensor) -> Tensor:
        """Relative weights of the phases from their collapsed divergence."""
        return keep_probability(score_F, self.floor)

    def choose(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        weight_F = torch.tensor(self.keep_prob)
        return select_chunks(weight_F[trajectory_phases(trajectory)], self.budget, generator)

    def metrics(self) -> dict[str, float]:
        return {
            f"pcm/{name}/{phase}": value
            for name, values in self.history[-1].items()
            for phase, value in zip(PHASES, values, strict=True)
            if not math.isnan(value)
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict[name])


def mean_divergence(groups: Sequence[RolloutGroup], reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """C_c of every phase, averaged over the mixed groups of all ranks that have both outcomes in it.

    Returns:
        float64 [2, F]: with and without the gripper dimension; NaN where no group has both outcomes.
    """
    sums = torch.zeros(2, len(PHASES), dtype=torch.float64)
    counts = torch.zeros(2, len(PHASES), dtype=torch.float64)
    for group in groups:
        if not group.mixed:
            continue
        action_NA = torch.cat([chunk_action(t.action_NLA, t.executed_N) for t in group.trajectories])
        phase_N = torch.cat([trajectory_phases(t) for t in group.trajectories])
        success_N = torch.cat([torch.full((len(t),), t.success) for t in group.trajectories])
        score = torch.stack(
            [divergence(action_NA, phase_N, success_N), divergence(action_NA[:, :-1], phase_N, success_N)]
        )
        sums += score.nan_to_num(nan=0.0)
        counts += ~score.isnan()
    # 0 / 0 is NaN: nobody has seen both outcomes
    sums, counts = reduce(torch.stack([sums, counts]))
    return sums / counts
