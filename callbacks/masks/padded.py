"""Random masking of padded trajectories: most of the budget is spent on chunks that never happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from callbacks.masks.base import ChunkMask
from vla_rl.types import Trajectory


class RandomPadded(ChunkMask):
    """Draws `budget` of the slots of a trajectory padded to the longest episode, and keeps the real chunks among them.

    With 64 slots and a budget of 12 about 3 of 17 chunks are kept, and of a short trajectory sometimes none: this may
    be what the PCM paper's random masking did. The padding itself changes no gradient and is not paid for.

    Args:
        budget: slots drawn, padding included: a number, or `{fraction: 0.19}` of the slots.
    """

    def __init__(self, budget: int | Mapping[str, Any] = 12) -> None:
        super().__init__(budget)

    def choose(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        slots = self._slots(trajectory)
        drawn = torch.randperm(slots, generator=generator)[: self.budget.of(slots)]
        return drawn[drawn < len(trajectory)].sort().values

    def inclusion(self, trajectory: Trajectory) -> Tensor:
        slots = self._slots(trajectory)
        return torch.full((len(trajectory),), min(1.0, self.budget.of(slots) / slots), dtype=torch.float64)

    def _slots(self, trajectory: Trajectory) -> int:
        return self.data.max_chunks_of(trajectory.episode.window)
