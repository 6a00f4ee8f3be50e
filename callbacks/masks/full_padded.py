"""Padded full training, what PCM's paper compares against: every trajectory costs as much as the longest one."""

from __future__ import annotations

import lightning as L
import torch

from vla_rl.types import ChunkBatch


class FullPadded(L.Callback):
    """Pads every trajectory to the longest episode's chunks; forward and backward are paid for all, the gradient stays.

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
            slots = torch.arange(trainer.datamodule.max_chunks_of(trajectory.episode.window))
            own = (batch.trajectory_N == index).nonzero().squeeze(1)
            rows.append(own[slots % len(own)])
            chunks.append(slots)
            real.append(slots < len(own))
        batch.select_(torch.cat(rows))
        batch.chunk_N = torch.cat(chunks)
        batch.token_mask_NLA &= torch.cat(real)[:, None, None]
