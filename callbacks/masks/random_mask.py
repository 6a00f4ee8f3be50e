"""Random masking, PCM's control: the same budget, spent uniformly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from callbacks.masks.base import ChunkMask
from vla_rl.functional.sampling import proportional_inclusion, select_chunks
from vla_rl.types import Trajectory


class RandomMask(ChunkMask):
    """Keeps `budget` chunks of each trajectory, drawn uniformly without replacement.

    Args:
        budget: chunks kept of a trajectory, at most: a number, or `{fraction: 0.19}`.
    """

    def __init__(self, budget: int | Mapping[str, Any] = 12) -> None:
        super().__init__(budget)

    def choose(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        return select_chunks(torch.ones(len(trajectory)), self.budget.of(len(trajectory)), generator)

    def inclusion(self, trajectory: Trajectory) -> Tensor:
        return proportional_inclusion(torch.ones(len(trajectory)), self.budget.of(len(trajectory)))
