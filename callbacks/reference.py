"""`Reference`: a policy's weights of an earlier time, and how far it has moved from them since."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vla_rl.types import ChunkBatch, Policy, Trajectory


class Reference:
    """The trainable weights (adapters, where there are any) as they were at the last `snapshot`."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def snapshot(self, policy: nn.Module) -> None:
        self.weights = {name: p.detach().cpu().clone() for name, p in _trainable(policy)}

    @torch.no_grad()
    def divergence(self, policy: Policy, trajectory: Trajectory, temperature: float, rows: int) -> float:
        """How much likelier the policy has made what it did: the mean of log pi - log pi_ref over the executed tokens.
        Its expectation is the Kullback-Leibler divergence of a token (nats).

        Args:
            rows: chunks per forward.
        """
        batch = ChunkBatch.from_trajectories([trajectory])
        with self._in_place(policy):
            parts = [
                policy.log_prob(batch.rows(start, start + rows), temperature)[0].cpu()
                for start in range(0, len(batch), rows)
            ]
        return float((batch.logprob_NLA - torch.cat(parts))[batch.token_mask_NLA].mean())

    @contextmanager
    def _in_place(self, policy: nn.Module) -> Iterator[None]:
        """The policy computes with the reference's weights; its own come back as they were, bit for bit."""
        own = [(p, p.data) for _, p in _trainable(policy)]
        try:
            for name, p in _trainable(policy):
                p.data = self.weights[name].to(p.device)
            yield
        finally:
            for p, data in own:
                p.data = data


def _trainable(policy: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
