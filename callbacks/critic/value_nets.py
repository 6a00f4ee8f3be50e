"""Small nets that learn from decisions' features how much an episode will earn; several are fitted side by side.

Shapes: see `vla_rl.types`, and
    M  nets
    R  decisions of all episodes, one after the other
    D  features of a decision
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = (64, 64)
DROPOUT = 0.3
LR, WEIGHT_DECAY = 2e-3, 0.05  # AdamW; the rate decays along a cosine to 0
BATCH = 256  # decisions of an optimizer step


@dataclass(slots=True)
class ValueNets:
    """M nets with two hidden layers: a forward is one batched product per layer."""

    mean_D: Tensor  # features are normalised by mean and standard deviation
    std_D: Tensor
    parameters: list[Tensor]  # weight and bias of each layer

    @classmethod
    def drawn(cls, feature_RD: Tensor, nets: int, generator: torch.Generator) -> ValueNets:
        """Not fitted yet.

        Args:
            feature_RD: decisions to be fitted to.
            nets: M.
            generator: of the initial weights, on the CPU.
        """
        sizes = [feature_RD.shape[1], *WIDTHS, 1]
        parameters: list[Tensor] = []
        for fan_in, fan_out in pairwise(sizes):
            for shape in ((nets, fan_in, fan_out), (nets, 1, fan_out)):
                bound = 1 / math.sqrt(fan_in)
                drawn = torch.rand(shape, generator=generator) * 2 * bound - bound
                parameters.append(drawn.to(feature_RD.device).requires_grad_())
        return cls(feature_RD.mean(0), feature_RD.std(0, correction=0).clamp(min=1e-6), parameters)

    def logits(self, feature_MRD: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Of the share of the reward that will be earned, [M, R]; with a generator, some units are dropped."""
        x = (feature_MRD - self.mean_D) / self.std_D
        layers = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        for weight, bias in layers[:-1]:
            x = F.relu(x @ weight + bias)
            if generator is not None:
                kept = torch.rand(x.shape, generator=generator).to(x.device) >= DROPOUT
                x = x * kept / (1 - DROPOUT)
        weight, bias = layers[-1]
        return (x @ weight + bias)[..., 0]

    def fit(self, feature_RD: Tensor, target_R: Tensor, may_see_MR: Tensor, steps: int, generator: torch.Generator):
        """Minimise the cross-entropy between values and targets in [0, 1].

        Args:
            may_see_MR: bool, the decisions that each net learns from; at least one each.
        """
        optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        own_M = [row.nonzero().squeeze(1) for row in may_see_MR]
        for _ in range(steps):
            drawn_MB = torch.stack([own[torch.randint(len(own), (BATCH,), generator=generator)] for own in own_M])
            logits_MB = self.logits(feature_RD[drawn_MB], generator)
            # summed over nets: their parameters are their own, so each has the gradient of its own mean
            loss = F.binary_cross_entropy_with_logits(logits_MB, target_R[drawn_MB], reduction="none").mean(1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def values(self, feature_RD: Tensor) -> Tensor:
        """[M, R], between 0 and 1."""
        return self.logits(feature_RD.expand(len(self.parameters[0]), -1, -1)).sigmoid()


def cross_fitted(
    feature_RD: Tensor,
    target_R: Tensor,
    fold_R: Tensor,
    *,
    folds: int,
    nets: int,
    steps: int,
    generator: torch.Generator,
) -> tuple[Tensor, ValueNets]:
    """Values of the decisions that have a fold, by nets that were fitted to all the others (cross-fitting).

    Args:
        target_R: in [0, 1].
        fold_R: int64, which fold a decision belongs to; -1: an earlier iteration's, which every net may see.

    Returns:
        float32, in the order of the decisions with `fold_R >= 0`; and the nets of all folds.
    """
    fold_M = torch.arange(folds).repeat_interleave(nets)
    model = ValueNets.drawn(feature_RD, folds * nets, generator)
    model.fit(feature_RD, target_R, fold_R != fold_M[:, None], steps, generator)
    present = fold_R >= 0
    value_MR = model.values(feature_RD[present])
    own_MR = (fold_R[present] == fold_M[:, None]).to(value_MR)
    return ((value_MR * own_MR).sum(0) / nets).cpu(), model
