"""`SFTModule`: supervised training of a chunk policy on demonstrations, by cross-entropy on its action tokens."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from vla_rl.config import SFTConfig
from vla_rl.demo_data import DemoBatch


class SFTModule(L.LightningModule):
    """loss = - mean over rows, steps and dimensions of log pi(token of the demonstrated command | observation).

    Args:
        policy: has `logits(observation)` [N, L, A, bins] and `tokenize(command_NLA)` [N, L, A].
    """

    def __init__(self, policy: Any, sft: SFTConfig) -> None:
        super().__init__()
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

    def configure_optimizers(self) -> dict[str, Any]:
        trainable = [p for p in self.policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.sft.lr, weight_decay=self.sft.weight_decay)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.sft.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
