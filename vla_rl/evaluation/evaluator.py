"""One policy's episodes of an evaluation, shared out over ranks: which succeeded, and the frames of a few to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from tqdm import tqdm

from vla_rl.config.schema import VideoConfig
from vla_rl.distributed.collectives import all_reduce_sum
from vla_rl.distributed.lockstep import in_lockstep
from vla_rl.distributed.strategies import shard_under_fsdp2
from vla_rl.figures.video import choose
from vla_rl.rollout.collect import TimeSplit, collect
from vla_rl.rollout.epoch import HeldoutBatch, HeldoutBatches
from vla_rl.types import Episode, Policy, SimulatorPool, Trajectory

PICTURED = 4  # successes, and failures, whose frames are kept for the report


@dataclass(slots=True)
class Evaluated:
    """What an evaluation of one policy came to. `success_E` and `steps_E` follow the order of the episodes."""

    window: int  # control steps executed of each chunk
    success_E: list[bool]
    steps_E: list[int]  # control steps executed
    pictured: list[Trajectory]  # the first successes and failures that this rank ran, by uid
    filmed: list[Trajectory]  # those of this rank that the rules for videos name, by uid
    time: TimeSplit  # of this rank


class Evaluator(L.LightningModule):
    """Runs episodes with a policy, for `Trainer.test`: Lightning brings devices and ranks. The answer is `result`.

    Args:
        temperature: of sampling; ignored when `decoding` is greedy.
        rules: which episodes become videos.
    """

    result: Evaluated

    def __init__(
        self, policy: Policy, pool: SimulatorPool, decoding: str, temperature: float, rules: VideoConfig
    ) -> None:
        super().__init__()
        self.policy, self.pool = policy, pool
        self.decoding, self.temperature, self.rules = decoding, temperature, rules

    def configure_model(self) -> None:
        shard_under_fsdp2(self, self.policy)

    def evaluate(self, trainer: L.Trainer, episodes: Sequence[Episode], window: int | None = None) -> Evaluated:
        """Each episode once, whatever the number of ranks and simulators.

        Args:
            window: control steps executed of each chunk; None = all.
        """
        batches = HeldoutBatches([HeldoutBatch(self.decoding, [replace(e, window=window) for e in episodes])])
        trainer.test(self, dataloaders=batches, verbose=False)
        return self.result

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # plans: nothing to move

    def test_step(self, batch: HeldoutBatch, batch_idx: int) -> None:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        own = list(range(len(batch.episodes)))[rank::world]
        held: list[Trajectory] = []
        with tqdm(total=len(own), unit="episode", leave=False, disable=None if rank == 0 else True) as bar:

            def on_done(trajectory: Trajectory) -> None:
                bar.update()
                held.append(trajectory)
                shown = {t.episode.uid for t in self._pictured(held) + self._filmed(held)}
                for forgotten in [t for t in held if t.episode.uid not in shown]:  # an evaluation would fill the memory
                    forgotten.frame_NHWC = forgotten.frame_NHWC[:0].clone()
                    held.remove(forgotten)

            with in_lockstep(self.policy, self.trainer) as actor:
                trajectories, time = collect(
                    self.pool,
                    actor,
                    [batch.episodes[i] for i in own],
                    temperature=0.0 if batch.decoding == "greedy" else self.temperature,
                    on_done=on_done,
                )
        outcome_E2 = torch.zeros(len(batch.episodes), 2, dtype=torch.float64)
        for i, trajectory in zip(own, trajectories, strict=True):
            outcome_E2[i] = torch.tensor([trajectory.success, trajectory.steps])
        success_E, steps_E = all_reduce_sum(outcome_E2, self.trainer).long().T.tolist()
        self.result = Evaluated(
            window=batch.episodes[0].window or self.pool.chunk_steps,
            success_E=list(map(bool, success_E)),
            steps_E=steps_E,
            pictured=self._pictured(held),
            filmed=self._filmed(held),
            time=time,
        )

    def _pictured(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        in_order = sorted(trajectories, key=lambda t: t.episode.uid)
        successes = [t for t in in_order if t.success]
        failures = [t for t in in_order if not t.success]
        return successes[:PICTURED] + failures[:PICTURED]

    def _filmed(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        return choose(trajectories, self.rules, lambda t: t.episode.task)
