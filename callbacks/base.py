"""`ChunkMask`: what all masks share. A mask chooses which chunks of each trajectory the update pays for.

A subclass says what to keep (`choose`) and, if it learns from the rollouts, how (`update`). The base shrinks each batch
in place before the step sees it. The same chunks are kept in every pass over an iteration's data, on any rank and
after a resume: the draw is seeded by (seed, iteration, episode uid).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vla_rl.distributed import all_reduce_sum, seeded_generator
from vla_rl.errors import UserError
from vla_rl.types import ChunkBatch, RolloutGroup, Trajectory


class ChunkMask(L.Callback):
    """Keeps at most `budget` chunks of every trajectory.

    Args:
        budget: chunks kept of a trajectory, at most; from 1 to the chunks of the longest episode.

    Raises:
        ValueError: for a budget that is no whole number or below 1.
        UserError: before the first rollout, for a budget above the longest episode.
    """

    def __init__(self, budget: int) -> None:
        check_count("budget", budget, "chunk", "mask.budget=12")
        self.budget = budget

    def choose(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """Indices (int64) of the chunks of `trajectory` to keep."""
        raise NotImplementedError

    def update(self, groups: Sequence[RolloutGroup], reduce: Callable[[Tensor], Tensor]) -> None:
        """Learn from an iteration's groups on this rank, before any batch of it is masked.

        Args:
            reduce: sums a tensor over ranks; call it equally often on each. Sum counts and sums, then divide.
        """

    def metrics(self) -> dict[str, float]:
        """What to log after each `update`; the same keys and values on every rank."""
        return {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        longest = trainer.datamodule.max_chunks
        if self.budget > longest:
            raise UserError(
                f"budget={self.budget} is above the {longest} chunks of the longest episode, so nothing would be "
                f"masked; mask.budget={longest} is the most"
            )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.update(trainer.train_dataloader.groups, lambda tensor: all_reduce_sum(tensor, trainer))
        for name, value in self.metrics().items():
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ChunkBatch, batch_idx: int
    ) -> None:
        seed, iteration = trainer.datamodule.seed, trainer.train_dataloader.iteration
        kept = []
        for index, trajectory in enumerate(batch.trajectories):
            generator = seeded_generator(seed, "chunk mask", iteration, trajectory.episode.uid)
            rows = (batch.trajectory_N == index).nonzero().squeeze(1)
            kept.append(rows[torch.isin(batch.chunk_N[rows], self.choose(trajectory, generator))])
        rows = torch.cat(kept)
        if len(rows):
            batch.select_(rows)
        else:  # the step runs on every rank, so it needs a row; this one has no weight
            batch.select_(torch.tensor([0]))
            batch.token_mask_NLA.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Statistics to resume from, in plain Python types; masks without statistics have none."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def check_count(name: str, value: int, unit: str, fix: str) -> None:
    """Refuse an option that is no whole number of units, or below 1; `fix` is an override that would work."""
    if not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number of {unit}s, got {value!r} ({fix})")
    if value < 1:
        raise ValueError(f"{name} must be at least 1 {unit}, got {value} ({fix})")
