"""What the mask does to the gradient, and where it should spend its budget: measured now and then, changing nothing.

Logs, every so many iterations:
- `diag/grad_cosine`, `diag/grad_norm_ratio`: between the masked gradient and the full one (every real chunk of the same
  trajectories), on the iteration's first minibatch and before any step, so that all ratios are 1.
- `diag/expected/<phase>`: chunks the mask keeps on average of the trajectories trained on, from its own probabilities;
  `phase/kept/<phase>` is what it did keep. Absent for masks that cannot say.
"""

from __future__ import annotations

from typing import cast

import lightning as L
import torch
from torch import Tensor

from callbacks.masks.base import ChunkMask
from vla_rl.checks import check_count
from vla_rl.distributed.collectives import all_reduce_sum
from vla_rl.distributed.parameters import full_tensor, is_sharded
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.trainer_state import callbacks_of, epoch_of
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.types import ChunkBatch


class Diagnostics(RolloutCallback):
    """Costs one more forward and backward of a whole minibatch and of its masked part at each measurement.

    Args:
        every_iterations: iterations between two measurements, beginning with the first.
    """

    def __init__(self, every_iterations: int = 10) -> None:
        check_count("callbacks.diagnostics.every_iterations", every_iterations, 10)
        self.every_iterations = every_iterations

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._due(trainer):
            return
        for mask in (callback for callback in callbacks_of(trainer) if isinstance(callback, ChunkMask)):
            expected_F, known = expected_allocation(mask)
            total_F = all_reduce_sum(torch.cat([expected_F, torch.tensor([float(known)])]), trainer).tolist()
            if total_F.pop() == trainer.world_size:
                for phase, value in zip(mask.labeller.phases, total_F, strict=True):
                    _log(pl_module, f"diag/expected/{phase}", value)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ChunkBatch, batch_idx: int
    ) -> None:
        if batch_idx or not self._due(trainer):
            return
        module = cast(GRPOModule, pl_module)
        full = gradient(module, unmasked(batch, epoch_of(trainer).training_trajectories))
        masked = gradient(module, batch)
        module.zero_grad()
        if full is None or masked is None or not full.norm() > 0 or not masked.norm() > 0:
            return
        _log(pl_module, "diag/grad_cosine", float(torch.nn.functional.cosine_similarity(full, masked, dim=0)))
        _log(pl_module, "diag/grad_norm_ratio", float(masked.norm() / full.norm()))

    def _due(self, trainer: L.Trainer) -> bool:
        return trainer.current_epoch % self.every_iterations == 0


def expected_allocation(mask: ChunkMask) -> tuple[Tensor, bool]:
    """Chunks per phase that the mask keeps on average of this rank's trajectories, float64 [F]; whether it can say."""
    expected_F = torch.zeros(len(mask.labeller.phases), dtype=torch.float64)
    for trajectory in mask.training_trajectories:
        inclusion_N = mask.inclusion(trajectory)
        if inclusion_N is None:
            return expected_F, False
        expected_F.index_add_(0, mask.labeller(trajectory), inclusion_N.double())
    return expected_F, True


def unmasked(batch: ChunkBatch, trained: list) -> ChunkBatch:
    """All real chunks of the batch's trajectories; without weight those that are only there to fill the batch."""
    whole = ChunkBatch.from_trajectories(batch.trajectories)
    whole.stand_in = batch.stand_in
    of_training = {id(trajectory) for trajectory in trained}
    counts = torch.tensor([id(trajectory) in of_training for trajectory in batch.trajectories])
    whole.token_mask_NLA &= counts[whole.trajectory_N][:, None, None]
    return whole


def gradient(module: GRPOModule, batch: ChunkBatch) -> Tensor | None:
    """The gradient of the batch's loss over all ranks as one vector, float32 on the host; None: nothing counts."""
    with module.no_grad_sync():  # outside training_step DDP's all-reduce would never complete
        if not module.compute_gradient(batch):
            return None
    gradients = [p.grad for p in module.policy.parameters() if p.grad is not None]
    vector = torch.cat([full_tensor(gradient).flatten().float().cpu() for gradient in gradients])
    if is_sharded(module.policy):  # every backward averages over ranks
        return vector
    return all_reduce_sum(vector, module.trainer) / module.trainer.world_size


def _log(module: L.LightningModule, name: str, value: float) -> None:
    module.log(name, value, on_step=False, on_epoch=True, batch_size=1)
