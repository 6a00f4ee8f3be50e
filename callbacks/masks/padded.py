"""Training on padded trajectories, PCM's baselines: all slots (`FullPadded`), or a random draw of them.

Every trajectory is padded to the longest episode's chunks. Leaving the padding out, the default, loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.masks.base import ChunkMask
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.trainer_state import data_of
from vla_rl.types import ChunkBatch, Trajectory


class FullPadded(RolloutCallback):
    """Pads every trajectory to the longest episode's chunks: forward and backward run on all, the gradient is the same.

    A padding row repeats a real one with no token that counts; its `chunk_N` goes on where the trajectory ended.
    Kept only to compare against: leaving the padding out, the default, loses nothing.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ChunkBatch, batch_idx: int
    ) -> None:
        if not batch.token_mask_NLA.any():  # nothing to learn from: no trajectory to pad
            return
        rows, chunks, real = [], [], []
        for index, trajectory in enumerate(batch.trajectories):
            slots = torch.arange(data_of(trainer).max_chunks_of(trajectory.episode.window))
            own = (batch.trajectory_N == index).nonzero().squeeze(1)
            rows.append(own[slots % len(own)])
            chunks.append(slots)
            real.append(slots < len(own))
        batch.select_(torch.cat(rows))
        batch.chunk_N = torch.cat(chunks)
        batch.token_mask_NLA &= torch.cat(real)[:, None, None]


class RandomPadded(ChunkMask):
    """Draws `budget` of the slots of a trajectory padded to the longest episode, and keeps the real chunks among them.

    With 64 slots and a budget of 12 about 3 of 17 chunks are kept, and of a short trajectory sometimes none: this may
    be what the PCM paper's random masking did. The padding itself changes no gradient and is not computed.

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
