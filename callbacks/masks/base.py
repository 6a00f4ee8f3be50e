"""`ChunkMask`: what all masks share. A mask chooses which chunks of each trajectory the update pays for.

A subclass says what to keep (`choose`) and, if it learns from the rollouts, how (`update`). The base shrinks each batch
in place before the step sees it. The same chunks are kept in every pass over an iteration's data, on any rank and
after a resume: the draw is seeded by (seed, iteration, episode uid).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.masks.budget import Budget
from vla_rl.distributed.collectives import all_reduce_sum
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.errors import UserError
from vla_rl.functional.phases import Labeller, trajectory_phases
from vla_rl.rollout.callback import RolloutCallback, may_change_windows
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.trainer_state import callbacks_of, data_of, epoch_of
from vla_rl.types import ChunkBatch, RolloutGroup, Trajectory


class ChunkMask(RolloutCallback):
    """Keeps at most `budget` chunks of every trajectory.

    What a subclass may use beside its arguments: `self.budget.of(len(trajectory))`, chunks to keep of a trajectory;
    `self.generator(trajectory)`, its draw; `self.training_trajectories`, this rank's trajectories that are trained on;
    `self.data`, the data module.

    Args:
        budget: chunks kept of a trajectory, at most: `12`, or `{fraction: 0.19}` of its chunks (`Budget`).
        knee: whether the mask sets `self.budget.fraction` itself when asked for `{knee: true}`.

    Raises:
        ValueError: unless the budget is an integer >= 1, or its fraction in (0, 1].
        UserError: before anything is written, for a budget above the longest episode.
    """

    data: RolloutDataModule
    training_trajectories: Sequence[Trajectory] = ()

    def __init__(self, budget: int | Mapping[str, Any], *, knee: bool = False) -> None:
        self.budget = Budget(budget, knee=knee)
        self._iteration = 0

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

    @property
    def labeller(self) -> Labeller:
        """What splits trajectories into phases wherever this mask's choices are counted or drawn."""
        return trajectory_phases

    def inclusion(self, trajectory: Trajectory) -> Tensor | None:
        """The probability of each chunk to be kept, float [N]; None where the mask cannot say."""
        return None

    def loss_weights(self, trajectory: Trajectory, kept_K: Tensor) -> tuple[Tensor, Tensor]:
        """`weight` and `share` of each kept chunk in the loss (`ChunkBatch`): 1 unless the draw is corrected for."""
        return torch.ones(len(kept_K)), torch.ones(len(kept_K))

    def generator(self, trajectory: Trajectory) -> torch.Generator:
        """The generator of this trajectory's draw, fresh at every call."""
        return seeded_generator(self.data.seed, "chunk mask", self._iteration, trajectory.episode.uid)

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        windows_may_change = any(may_change_windows(callback) for callback in callbacks)
        self.budget.check(data.max_chunks_of(1) if windows_may_change else data.max_chunks)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.data = data_of(trainer)
        self.check_run(self.data, callbacks_of(trainer))  # again: not every program asks before it starts the trainer

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = epoch_of(trainer)
        self._iteration, self.training_trajectories = epoch.iteration, epoch.training_trajectories
        self.update(epoch.groups, lambda tensor: all_reduce_sum(tensor, trainer))
        for name, value in self.metrics().items():
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ChunkBatch, batch_idx: int
    ) -> None:
        rows = torch.cat([self._mask(batch, index) for index in range(len(batch.trajectories))])
        if len(rows):
            batch.select_(rows)
        else:  # the step runs on every rank, so it needs a row; this one has no weight
            batch.select_(torch.tensor([0]))
            batch.token_mask_NLA.zero_()

    def _mask(self, batch: ChunkBatch, index: int) -> Tensor:
        """The rows of trajectory `index` to keep; how they count is written into the batch."""
        trajectory = batch.trajectories[index]
        own = (batch.trajectory_N == index).nonzero().squeeze(1)
        rows = own[torch.isin(batch.chunk_N[own], self.choose(trajectory, self.generator(trajectory)))]
        weight, share = self.loss_weights(trajectory, batch.chunk_N[rows])
        batch.weight_N[rows], batch.share_N[rows] = weight.float(), share.float()
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Statistics to resume from, in plain Python types; masks without statistics have none."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def labeller_of(callbacks: Sequence[L.Callback]) -> Labeller:
    """The labeller of the run's mask; the default one where no mask has its own."""
    masks = [callback for callback in callbacks if isinstance(callback, ChunkMask)]
    return masks[0].labeller if masks else trajectory_phases


def check_own_advantages(data: RolloutDataModule, who: str) -> None:
    """Raise UserError where no critic gives chunks values and advantages of their own."""
    if data.grpo.advantage != "gae":
        raise UserError(
            f"{who} needs a critic's advantage of each chunk, and grpo.advantage={data.grpo.advantage} gives all "
            "chunks of an episode the same: critic=separate grpo.advantage=gae grpo.group_filter=keep, or mask=random"
        )
