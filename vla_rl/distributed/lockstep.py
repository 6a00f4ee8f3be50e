"""A policy whose forwards are collectives: all ranks run equally many, whatever their simulators do.

In a rollout a rank that has fewer rows waiting than another pads its own, and one whose episodes have all ended goes on
with rows of no meaning until the last rank is done. Elsewhere the number of forwards is known before the first of them
(`forwards_to_add`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import lightning as L
import torch
from lightning.pytorch.strategies import Strategy

from vla_rl.distributed.collectives import all_reduce_max
from vla_rl.distributed.parameters import is_sharded
from vla_rl.types import ActionChunk, Observation, Policy


def forwards_to_add(forwards: int, policy: Policy, trainer: L.Trainer) -> int:
    """How many forwards of no meaning this rank has to run after its own `forwards`, to run as many as any other; none
    where a forward is no collective. All ranks ask before the first of theirs."""
    return all_reduce_max(forwards, trainer) - forwards if is_sharded(policy) else 0


class InStep:
    """`policy.act` in step with the other ranks. Every rank calls `finish` when its episodes have ended."""

    def __init__(self, policy: Policy, strategy: Strategy) -> None:
        self._policy, self._strategy = policy, strategy
        self._example: Observation | None = None  # one row of an observation

    def act(self, observation: Observation, seed_N: Sequence[int] | None, temperature: float) -> ActionChunk:
        rows = len(observation.instruction_N)
        self._example = _repeat(observation, [0])
        most = self._agree(rows)
        index = [*range(rows), *[0] * (most - rows)]
        seeds = None if seed_N is None else [seed_N[i] for i in index]
        chunk = self._policy.act(_repeat(observation, index), seeds, temperature)
        return ActionChunk(*(getattr(chunk, f.name)[:rows] for f in fields(chunk)))

    def finish(self) -> None:
        """Go on until no rank has an episode left."""
        while most := self._agree(0):
            self._policy.act(_repeat(self._example, [0] * most), None, 1.0)

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
