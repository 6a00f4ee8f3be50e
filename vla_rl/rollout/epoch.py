"""`RolloutEpoch`: one iteration's data, as the dataloader that Lightning iterates over.

Cheap to make; it collects on first use and only once, because Lightning may iterate or rebuild it more often than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from vla_rl.distributed.seeding import seeded_generator
from vla_rl.rollout.collect import TimeSplit
from vla_rl.types import ChunkBatch, Episode, RolloutGroup, Trajectory


@dataclass(slots=True)
class Collected:
    """An iteration's rollouts on this rank."""

    groups: list[RolloutGroup]  # all of them, those nothing can be learnt from included
    training_trajectories: list[Trajectory]  # those that survive the group filter and down-sampling
    time: TimeSplit


class RolloutEpoch:
    """One iteration's data on this rank: a sized iterable of `ChunkBatch`, one per optimizer step.

    Its length is fixed by the config, never by what was collected: ranks with different numbers of batches would hang.
    A batch left without any useful trajectory holds one row of zero weight.
    """

    def __init__(
        self,
        iteration: int,
        minibatches: int,
        epochs: int,
        seed: int,
        collect: Callable[[], Collected],
        gather: Callable[[list[int]], list[int]] = list,
    ) -> None:
        self.iteration = iteration
        self.minibatches, self.epochs, self.seed = minibatches, epochs, seed
        self._collect, self._gather = collect, gather
        self._collected: Collected | None = None
        self._order: list[int] | None = None  # uids of the trajectories trained on, on any rank, shuffled

    @property
    def groups(self) -> list[RolloutGroup]:
        """All groups of this rank, those that are not trained on included; collected on first access."""
        return self._result().groups

    @property
    def training_trajectories(self) -> list[Trajectory]:
        return self._result().training_trajectories

    @property
    def time(self) -> TimeSplit:
        return self._result().time

    def _result(self) -> Collected:
        if self._collected is None:
            self._collected = self._collect()
        return self._collected

    def __len__(self) -> int:
        return self.minibatches * self.epochs

    def __iter__(self) -> Iterator[ChunkBatch]:
        if self._order is None:  # over all ranks: a minibatch holds the same trajectories, however they are shared out
            uids = sorted(self._gather([t.episode.uid for t in self.training_trajectories]))
            generator = seeded_generator(self.seed, "minibatches", self.iteration)
            self._order = [uids[i] for i in torch.randperm(len(uids), generator=generator).tolist()]
        own = {t.episode.uid: t for t in self.training_trajectories}
        for _ in range(self.epochs):
            for start in range(self.minibatches):
                yield self._batch([own[uid] for uid in self._order[start :: self.minibatches] if uid in own])

    def _batch(self, trajectories: list[Trajectory]) -> ChunkBatch:
        if trajectories:
            return ChunkBatch.from_trajectories(trajectories)
        batch = ChunkBatch.from_trajectories(self.groups[0].trajectories[:1])
        batch.select_(torch.tensor([0]))
        batch.token_mask_NLA.zero_()
        batch.stand_in = True
        return batch


@dataclass(slots=True)
class HeldoutBatch:
    """Episodes of one evaluation and how to decode in it: `sampled` (at the rollouts' temperature) or `greedy`."""

    decoding: str
    episodes: list[Episode]


class HeldoutBatches(list[HeldoutBatch]):
    """One dataloader; Lightning would take a plain list for several of them."""
