"""`SFTModule`: supervised training of a chunk policy on demonstrations, by the policy's own imitation loss."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vla_rl.config.schema import OptimConfig
from vla_rl.distributed.parameters import clip_grad_norm, trainable_parameters
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.distributed.strategies import shard_under_fsdp2
from vla_rl.training.checkpoint_io import complete_checkpoint, keep_trained
from vla_rl.training.demo_datamodule import DemoBatch
from vla_rl.training.optimizer import build_optimizer
from vla_rl.types import SupervisedPolicy

WARMUP_STEPS = 20


class SFTModule(L.LightningModule):
    """The policy and its imitation loss; one scheduled AdamW step per batch.

    Args:
        steps: of the whole run, for the schedule of the learning rate.
        seed: of what the loss draws.
    """

    def __init__(self, policy: SupervisedPolicy, optim: OptimConfig, steps: int, seed: int) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold trainable tensors only
        self.policy = policy
        self.optim, self.steps, self.seed = optim, steps, seed

    def configure_model(self) -> None:
        shard_under_fsdp2(self, self.policy)

    def training_step(self, batch: DemoBatch) -> Tensor:
        # of the step alone: a run that goes on draws what it would have drawn
        loss = self._loss(batch, "loss", self.trainer.global_step, self.trainer.global_rank)
        self.log("sft/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: DemoBatch, batch_idx: int) -> None:
        loss = self._loss(batch, "heldout loss", batch_idx)
        self.log("sft/heldout_loss", loss, prog_bar=True, batch_size=len(batch.command_NLA))

    def _loss(self, batch: DemoBatch, *draw: str | int) -> Tensor:
        return self.policy.imitation_loss(batch.observation, batch.command_NLA, seeded_generator(self.seed, *draw))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        complete_checkpoint(checkpoint, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep_trained(checkpoint, self)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(trainable_parameters(self.policy).values(), self.optim)
        scale = partial(warm_cosine, steps=self.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        clip_grad_norm(trainable_parameters(self.policy).values(), self.optim.grad_clip)


def warm_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: up linearly over `WARMUP_STEPS`, times a cosine that ends at 0.

    Example:
        >>> warm_cosine(0, 100), warm_cosine(50, 100)
        (0.05, 0.5)
    """
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
