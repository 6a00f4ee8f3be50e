"""`SFTModule`: supervised training of a chunk policy on demonstrations, by cross-entropy on its action tokens."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from vla_rl.config.schema import SFTConfig
from vla_rl.distributed.parameters import trained
from vla_rl.training.checkpoint_io import keep_trained
from vla_rl.training.demo_datamodule import DemoBatch

WARMUP_STEPS = 20
BETAS = (0.9, 0.95)  # the second moment forgets fast: a run has only hundreds of steps


class SFTModule(L.LightningModule):
    """loss = - mean over rows, steps and dimensions of log pi(token of the demonstrated command | observation).

    Args:
        policy: has `logits(observation)` [N, L, A, bins] and `tokenize(command_NLA)` [N, L, A].
    """

    def __init__(self, policy: Any, sft: SFTConfig) -> None:
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
        logits_NLAB = self.policy.logits(batch.observation)
        token_NLA = self.policy.tokenize(batch.command_NLA).to(logits_NLAB.device)
        return F.cross_entropy(logits_NLAB.flatten(0, 2), token_NLA.flatten())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep_trained(checkpoint, self)

    def configure_optimizers(self) -> dict[str, Any]:
        parameters = trained(self.policy).values()
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
