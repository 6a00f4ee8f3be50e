"""How much of what decides the episodes a mask keeps, as a critic sees it."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from vla_rl.distributed.collectives import all_reduce_sum
from vla_rl.functional.credit import credit, undecided
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.types import ChunkBatch


class CreditKept(RolloutCallback):
    """Logs, per iteration and over all ranks, and only where a critic gives the chunks values:

    - `credit/kept`: the share of the episodes' credit, (V_{t+1} - V_t)^2, that lies in the chunks trained on. A mask
      that draws by chance keeps as much as its share of the chunks.
    - `credit/open_kept`: the share of the chunks with an open outcome (V between .1 and .9) that are trained on.
    """

    def __init__(self) -> None:
        self._of_episode: dict[int, Tensor] = {}  # this iteration: uid -> what `sums` says

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._of_episode = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: ChunkBatch, batch_idx: int
    ) -> None:
        if not batch.stand_in and "value" in batch.trajectories[0].actions.extras:
            for index, trajectory in enumerate(batch.trajectories):  # by uid: a second pass counts nothing twice
                self._of_episode[trajectory.episode.uid] = sums(batch, index)
        if trainer.is_last_batch:
            total = sum(self._of_episode.values(), start=torch.zeros(2, 2, dtype=torch.float64))
            for name, (all_chunks, kept) in zip(
                ("credit/kept", "credit/open_kept"), all_reduce_sum(total, trainer).tolist(), strict=True
            ):
                if all_chunks:
                    pl_module.log(name, kept / all_chunks, on_step=False, on_epoch=True, batch_size=1)


def sums(batch: ChunkBatch, index: int) -> Tensor:
    """Credit, and chunks with an open outcome, of trajectory `index` of a masked batch: [2, 2], of all and of the kept
    chunks."""
    trajectory = batch.trajectories[index]
    value_N = trajectory.actions.extras["value"]
    both_2N = torch.stack([credit(value_N, trajectory.reward), undecided(value_N).float()]).double()
    return torch.stack([both_2N.sum(1), both_2N[:, batch.chunks_of(index)].sum(1)], dim=1)
