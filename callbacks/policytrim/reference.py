"""`Reference`: a policy's weights of an earlier time, and how far it has moved from them since."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vla_rl.distributed.lockstep import forwards_to_add
from vla_rl.distributed.parameters import full_tensor, trainable_parameters
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.types import ChunkBatch, Policy, Trajectory


class Reference:
    """The trainable weights (adapters, where there are any) as they were at the last `snapshot`, whole."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def snapshot(self, policy: nn.Module) -> None:
        """A collective where the policy is sharded."""
        self.weights = {name: full_tensor(p.detach()).cpu().clone() for name, p in trainable_parameters(policy).items()}

    @torch.no_grad()
    def divergence(
        self, data: RolloutDataModule, trajectories: Sequence[Trajectory], filler: Trajectory
    ) -> list[float]:
        """How much likelier the policy has made what each trajectory did: the mean of log pi - log pi_ref over its
        executed tokens. Its expectation is the Kullback-Leibler divergence of a token (nats). A collective where the
        policy is sharded.

        Args:
            data: with the policy, the temperature, and how many rows a forward takes.
            filler: what a rank that has fewer forwards to run than another goes on with.
        """
        policy, temperature, trainer = data.policy, data.rollout.temperature, data.attached_trainer
        rows = data.grpo.micro_rows or max(map(len, trajectories), default=1)
        nothing = ChunkBatch.from_trajectories([filler]).rows(0, 1)
        to_add = forwards_to_add(sum(math.ceil(len(t) / rows) for t in trajectories), policy, trainer)
        with self._in_place(policy):
            found = [_log_ratio(policy, t, temperature, rows) for t in trajectories]
            for _ in range(to_add):  # with the reference in place: the others gather this rank's shards
                policy.log_prob(nothing, temperature)
        return found

    @contextmanager
    def _in_place(self, policy: nn.Module) -> Iterator[None]:
        """The policy computes with the reference's weights; its own come back as they were, bit for bit. Values change
        places, not tensors: FSDP2 gathers from the storage that it has laid out."""
        changed = [(self.weights[name], p.detach()) for name, p in trainable_parameters(policy).items()]
        own = [p.clone() for _, p in changed]
        try:
            for weight, p in changed:
                p.copy_(_laid_out_as(p, weight))
            yield
        finally:
            for (_, p), value in zip(changed, own, strict=True):
                p.copy_(value)


def _log_ratio(policy: Policy, trajectory: Trajectory, temperature: float, rows: int) -> float:
    """The mean of log pi_then - log pi over the executed tokens, pi_then the policy that acted."""
    batch = ChunkBatch.from_trajectories([trajectory])
    parts = [
        policy.log_prob(batch.rows(start, start + rows), temperature)[0].cpu() for start in range(0, len(batch), rows)
    ]
    return float((batch.actions.logprob_NLA - torch.cat(parts))[batch.token_mask_NLA].mean())


def _laid_out_as(p: Tensor, weight: Tensor) -> Tensor:
    """`weight`, or this rank's shard of it where `p` is one; every rank has the whole, so nothing is sent."""
    if not isinstance(p, DTensor):
        return weight
    return distribute_tensor(weight.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
