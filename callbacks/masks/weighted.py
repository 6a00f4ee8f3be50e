"""`WeightedMask`: masks that draw the chunks of a trajectory by a weight of each chunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from callbacks.masks.base import ChunkMask
from vla_rl.config.instantiate import resolve
from vla_rl.functional.sampling import ESTIMATORS, Estimator
from vla_rl.types import Trajectory


class WeightedMask(ChunkMask):
    """Keeps `budget` chunks of each trajectory by their weights; a subclass says what a chunk weighs.

    Args:
        budget, knee: see `ChunkMask`.
        estimator: how chunks are drawn and counted, by its name in `estimators`.

    Raises:
        UserError: for an estimator that does not exist.
    """

    estimators: ClassVar[Mapping[str, Estimator]] = ESTIMATORS

    def __init__(self, budget: int | Mapping[str, Any], estimator: str, *, knee: bool = False) -> None:
        super().__init__(budget, knee=knee)
        self.estimator: Estimator = resolve(estimator, self.estimators, "mask.estimator")

    def weight_of(self, trajectory: Trajectory) -> Tensor:
        """Relative weight of each chunk, float32 [N]."""
        raise NotImplementedError

    def choose(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        return self.estimator.draw(self.weight_of(trajectory), self.budget.of(len(trajectory)), generator)

    def inclusion(self, trajectory: Trajectory) -> Tensor | None:
        return self.estimator.inclusion(self.weight_of(trajectory), self.budget.of(len(trajectory)))

    def loss_weights(self, trajectory: Trajectory, kept_K: Tensor) -> tuple[Tensor, Tensor]:
        inclusion_N = self.inclusion(trajectory)
        if self.estimator.loss_weights is None or inclusion_N is None or not len(kept_K):
            return super().loss_weights(trajectory, kept_K)
        tokens_N = trajectory.executed_N * trajectory.actions.logprob_NLA.shape[2]
        return self.estimator.loss_weights(inclusion_N[kept_K], tokens_N[kept_K], int(tokens_N.sum()))
