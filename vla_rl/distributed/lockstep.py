"""A policy whose forwards are collectives: all ranks run equally many, whatever their simulators do.

In a rollout a rank that has fewer rows waiting than another pads its own, and one whose episodes have all ended goes on
with dummy rows until the last rank is done. Elsewhere the number of forwards is known before the first of them
(`forwards_to_add`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning as L
import torch
from lightning.pytorch.strategies import Strategy

from vla_rl.distributed.collectives import all_reduce_max
from vla_rl.distributed.parameters import is_sharded
from vla_rl.types import ActionChunk, Actor, Observation, Policy


def forwards_to_add(forwards: int, policy: Policy, trainer: L.Trainer) -> int:
    """How many dummy forwards this rank adds after its own `forwards`, so that all ranks issue the same collectives;
    0 where a forward is not a collective. Call on all ranks before the first forward."""
    return all_reduce_max(forwards, trainer) - forwards if is_sharded(policy) else 0


@contextmanager
def in_lockstep(policy: Policy, trainer: L.Trainer) -> Iterator[Actor]:
    """Who is asked during a collection: the policy itself, or where it is sharded a `LockstepActor` in its place."""
    if not is_sharded(policy):
        yield policy
        return
    actor = LockstepActor(policy, trainer.strategy)
    yield actor
    actor.finish()  # not after an exception: the other ranks end with this one


class LockstepActor:
    """`policy.act` in lockstep with the other ranks. Every rank calls `finish` when its episodes have ended."""

    def __init__(self, policy: Policy, strategy: Strategy) -> None:
        self._policy, self._strategy = policy, strategy
        self._example: Observation | None = None  # one row of an observation

    def act(self, observation: Observation, seed_N: Sequence[int], temperature: float) -> ActionChunk:
        rows = len(observation.instruction_N)
        self._example = _repeat(observation, [0])
        most = self._agree(rows)
        index = [*range(rows), *[0] * (most - rows)]
        chunk = self._policy.act(_repeat(observation, index), [seed_N[i] for i in index], temperature)
        return chunk.rows(slice(rows))

    def finish(self) -> None:
        """Go on until no rank has an episode left."""
        while most := self._agree(0):
            assert self._example is not None  # `_agree` left every rank one
            self._policy.act(_repeat(self._example, [0] * most), [0] * most, 0.0)

    def _agree(self, rows: int) -> int:
        """The most rows that any rank has; afterwards every rank has an example."""
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        news = torch.tensor([rows, rows and world - rank, self._example is None], device=self._strategy.root_device)
        torch.distributed.all_reduce(news, torch.distributed.ReduceOp.MAX)
        most, source, missing = news.tolist()
        if most and missing:
            self._example = self._strategy.broadcast(self._example, src=world - source)  # the first that has rows
        return most


def _repeat(observation: Observation, index: list[int]) -> Observation:
    instructions = [observation.instruction_N[i] for i in index]
    return Observation(observation.frame_NHWC[index], observation.proprio_NP[index], instructions)
