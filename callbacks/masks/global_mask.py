"""Masks whose budget is shared over the whole iteration: as many chunks in all, where they are worth most."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.masks.base import ChunkMask
from callbacks.masks.pcm import PCM
from vla_rl.functional.sampling import gumbel_key, top_threshold
from vla_rl.functional.token_scores import chunk_score_norm
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.types import RolloutGroup, Trajectory


class GlobalMask(ChunkMask):
    """Keeps the k chunks with the largest keys over all trajectories; k is the sum of the trajectories' budgets.

    A subclass says what a chunk's key is. Which chunks are kept depends on all of the iteration's trajectories, but not
    on how ranks and batches share them.
    """

    _threshold = -math.inf

    def key(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """What decides about each chunk, float64 [N] in (-1e6, 1e6), no two alike; -inf: never kept."""
        raise NotImplementedError

    def update(self, groups: Sequence[RolloutGroup], reduce: Callable[[Tensor], Tensor]) -> None:
        super().update(groups, reduce)
        key_N = torch.cat([torch.zeros(0), *(self.key(t, self.generator(t)) for t in self.training_trajectories)])
        budget = reduce(torch.tensor(float(sum(self.budget.of(len(t)) for t in self.training_trajectories))))
        self._threshold = top_threshold(
            lambda threshold: int(reduce((key_N > threshold).sum().double())), keep=int(budget)
        )

    def choose(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        return (self.key(trajectory, generator) > self._threshold).nonzero().squeeze(1)


class GlobalPCM(GlobalMask, PCM):
    """PCM with one budget for the whole iteration, drawn without replacement by |A_i| x the phase's weight.

    Args:
        budget: chunks kept of a trajectory on average.
        floor, refresh_every, labeller: see `PCM`.
    """

    def __init__(
        self,
        budget: int | Mapping[str, Any] = 12,
        floor: float = 0.1,
        refresh_every: int = 5,
        labeller: str = "gripper",
    ) -> None:
        PCM.__init__(self, budget=budget, floor=floor, refresh_every=refresh_every, labeller=labeller)

    def key(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        return gumbel_key(trajectory.advantage_N.abs() * self.weight_of(trajectory).double(), generator)

    def inclusion(self, trajectory: Trajectory) -> Tensor | None:
        return None  # depends on all other trajectories


class ScoreNorm(GlobalMask):
    """Keeps the chunks of the iteration whose tokens had the largest last-layer score, |A_i| sqrt(sum ||e_a - p||^2).

    The norms are those of the rollout's distributions, so they cost nothing; nothing is drawn.

    Args:
        budget: chunks kept of a trajectory on average: a number, or `{fraction: 0.19}`.
    """

    def __init__(self, budget: int | Mapping[str, Any] = 12) -> None:
        super().__init__(budget)

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        super().check_run(data, callbacks)
        data.request_extra("score_sq", "mask=score_norm")

    def key(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        norm_N = chunk_score_norm(
            trajectory.actions.extras["score_sq"], trajectory.executed_N, trajectory.advantage_N
        ).double()
        tie_break_N = torch.rand(len(trajectory), generator=generator, dtype=torch.float64)
        return torch.where(norm_N > 0, norm_N + 1e-6 * tie_break_N, -math.inf)
