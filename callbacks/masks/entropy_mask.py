"""Entropy masking: keep the chunks where the policy was least sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.masks.base import ChunkMask
from vla_rl.errors import UserError
from vla_rl.functional.token_scores import chunk_entropy
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.types import Trajectory


class EntropyMask(ChunkMask):
    """Keeps the `budget` chunks of each trajectory with the highest mean token entropy; nothing is drawn.

    The entropies are those of the rollout, so they cost nothing.

    Args:
        budget: chunks kept of a trajectory, at most: a number, or `{fraction: 0.19}`.

    Raises:
        UserError: before anything is written, for a policy whose entropy is a constant of its noise.
    """

    def __init__(self, budget: int | Mapping[str, Any] = 12) -> None:
        super().__init__(budget)

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        super().check_run(data, callbacks)
        if not data.policy.learns_entropy:
            raise UserError(
                "the entropy of this policy is set by its noise, the same for all it sees, so that mask=entropy would "
                "not keep where it was least sure: mask=random, or a policy that learns it (policy.noise=learnt)"
            )

    def choose(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        entropy_N = chunk_entropy(trajectory.actions.entropy_NLA, trajectory.executed_N)
        return entropy_N.topk(min(self.budget.of(len(trajectory)), len(trajectory))).indices.sort().values

    def inclusion(self, trajectory: Trajectory) -> Tensor:
        kept = torch.zeros(len(trajectory), dtype=torch.float64)
        kept[self.choose(trajectory, self.generator(trajectory))] = 1.0
        return kept
