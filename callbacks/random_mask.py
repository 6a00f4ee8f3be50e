"""Random masking, PCM's control: the same budget, spent uniformly."""

from __future__ import annotations

import torch
from torch import Tensor

from callbacks.base import ChunkMask
from vla_rl.phases import select_chunks
from vla_rl.types import Trajectory


class RandomMask(ChunkMask):
    """Keeps `budget` chunks of each trajectory, drawn uniformly without replacement.

    Args:
        budget: chunks kept of a trajectory, at most.
    """

    def __init__(self, budget: int = 12) -> None:
        super().__init__(budget)

    def choose(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        return select_chunks(torch.ones(len(trajectory)), self.budget, generator)
