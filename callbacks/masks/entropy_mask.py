"""Entropy masking: keep the chunks where the policy was least sure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from callbacks.masks.base import ChunkMask
from vla_rl.functional.token_scores import chunk_entropy
from vla_rl.types import Trajectory


class EntropyMask(ChunkMask):
    """Keeps the `budget` chunks of each trajectory with the highest mean token entropy; nothing is drawn.

    The entropies are those of the rollout, so they cost nothing.

    Args:
        budget: chunks kept of a trajectory, at most: a number, or `{fraction: 0.19}`.
    """

    def __init__(self, budget: int | Mapping[str, Any] = 12) -> None:
        super().__init__(budget)

    def choose(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        entropy_N = chunk_entropy(trajectory.actions.entropy_NLA, trajectory.executed_N)
        return entropy_N.topk(min(self.budget.of(len(trajectory)), len(trajectory))).indices.sort().values

    def inclusion(self, trajectory: Trajectory) -> Tensor:
        kept = torch.zeros(len(trajectory), dtype=torch.float64)
        kept[self.choose(trajectory, self.generator(trajectory))] = 1.0
        return kept
