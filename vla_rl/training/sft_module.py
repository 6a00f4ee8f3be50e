"""`SFTModule`: supervised training of a chunk policy on demonstrations, by the policy's own imitation loss."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vla_rl.config.schema import SFTConfig
from vla_rl.distributed.parameters import trainable_parameters
from vla_rl.training.checkpoint_io import complete_checkpoint, keep_trained
from vla_rl.training.demo_datamodule import DemoBatch
from vla_rl.types import SupervisedPolicy

WARMUP_STEPS = 20
BETAS = (0.9, 0.95)  # the second moment forgets fast: a run has only hundreds of steps


class SFTModule(L.LightningModule):
    """The policy and its imitation loss; one scheduled AdamW step per batch."""

    def __init__(self, policy: SupervisedPolicy, sft: SFTConfig) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold trainable tensors only
        self.policy = policy
        self.sft = sft

    def training_step(self, batch: DemoBatch) -> Tensor:
        loss = self._loss(batch)
        self.log("sft/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: DemoBatch) -> None:
        self.log("sft/heldout_loss", self._loss(batch), prog_bar=True, batch_size=len(batch.command_NLA))

    def _loss(self, batch: DemoBatch) -> Tensor:
        return self.policy.imitation_loss(batch.observation, batch.command_NLA)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        complete_checkpoint(checkpoint, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep_trained(checkpoint, self)

    def configure_optimizers(self) -> Any:
        parameters = trainable_parameters(self.policy).values()
        optimizer = torch.optim.AdamW(parameters, lr=self.sft.lr, betas=BETAS, weight_decay=self.sft.weight_decay)
        scale = partial(warm_cosine, steps=self.sft.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warm_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: up linearly over `WARMUP_STEPS`, times a cosine that ends at 0.

    Example:
        >>> warm_cosine(0, 100), warm_cosine(50, 100)
        (0.05, 0.5)
    """
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
