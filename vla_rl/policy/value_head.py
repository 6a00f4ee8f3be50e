"""`ValueHead`: a critic that learns with the policy, from the state in which the policy decides.

Shapes: see `vla_rl.types`, and
    D  numbers of a decision's state (`Policy.state_dims`)
    S  values of a decision: 1, or L, one for each of its control steps
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from vla_rl.functional.gae import value_loss
from vla_rl.types import ChunkBatch, Policy

WIDTHS = (512, 128)
LAST_STD = 0.02  # of the last layer's initial weights: values start near 0


class NoValueHead(nn.Module):
    """Without a critic that learns with the policy: the policy's scores, and no further term of the loss."""

    def score(
        self, policy: Policy, batch: ChunkBatch, temperature: float, weight_NLA: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Log-probabilities and entropies of `Policy.log_prob`, and further terms of the loss by name: sums that are
        weighted as the policy's loss is, so that they add up over micro-batches and ranks."""
        return *policy.log_prob(batch, temperature), {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters and their options, as an optimizer takes them."""
        return []


class ValueHead(nn.Module):
    """An MLP D-512-128-S with GELU, in float32.

    Args:
        state_dims: D.
        values: S.
        lr: its own learning rate.
        clip, huber_delta: see `vla_rl.functional.gae.value_loss`.
        coef: weight of its loss beside the policy's.
        generator: of the initial weights.
    """

    def __init__(
        self,
        state_dims: int,
        values: int,
        *,
        lr: float,
        clip: float,
        huber_delta: float,
        coef: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.lr, self.clip, self.huber_delta, self.coef = lr, clip, huber_delta, coef
        self.first = skip_init(nn.Linear, state_dims, WIDTHS[0])
        self.second = skip_init(nn.Linear, *WIDTHS)
        self.last = skip_init(nn.Linear, WIDTHS[1], values, bias=False)
        for layer in (self.first, self.second):  # as `nn.Linear` does, from a generator of our own
            bound = layer.in_features**-0.5
            for p in layer.parameters():
                nn.init.uniform_(p, -bound, bound, generator=generator)
        nn.init.normal_(self.last.weight, std=LAST_STD, generator=generator)

    def forward(self, state_ND: Tensor) -> Tensor:
        """The reward that is expected at each decision, or at each of its control steps, float32 [N, S]."""
        x = F.gelu(self.first(state_ND.float()))
        return self.last(F.gelu(self.second(x)))

    def score(
        self, policy: Policy, batch: ChunkBatch, temperature: float, weight_NLA: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As `NoValueHead`, with the loss of the values (`batch.actions.extras` has "values" and "returns")."""
        logprob_NLA, entropy_NLA, state_ND = policy.log_prob_and_state(batch, temperature)
        value_NS = self(state_ND)
        old_NS, return_NS = (batch.actions.extras[name].to(value_NS) for name in ("values", "returns"))
        loss_NS = value_loss(value_NS, old_NS, return_NS, clip=self.clip, huber_delta=self.huber_delta)
        weight_NL = weight_NLA.to(loss_NS).sum(2)  # a value counts as the tokens do that it is about
        weight_NS = weight_NL if value_NS.shape == weight_NL.shape else weight_NL.sum(1, keepdim=True)
        return logprob_NLA, entropy_NLA, {"value_loss": self.coef * (weight_NS * loss_NS).sum()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": self.lr}]
