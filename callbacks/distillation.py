"""`Distillation`: a teacher's opinion of what the student did, as the advantage of every number
(`grpo.advantage=distill`)."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor

from vla_rl.distributed.collectives import all_reduce_sum
from vla_rl.errors import UserError
from vla_rl.functional.distillation import distillation_advantage
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.datamodule import RolloutDataModule, check_policy
from vla_rl.rollout.trainer_state import data_of, epoch_of
from vla_rl.types import ChunkBatch, Policy, RolloutGroup


class Distillation(RolloutCallback):
    """Writes `actions.extras["advantage"]`, one for each number, and `advantage_N`, their means over executed numbers.
    Logs `distill/kl`, the mean of log pi_student - log pi_teacher (nats per number).

    The rewards of the episodes are not used. Every rank has a whole copy of the teacher, which is not trained and not
    saved.

    Args:
        teacher: a policy with the student's action tokens, statistics and chunk.
    """

    data: RolloutDataModule
    trainer: L.Trainer

    def __init__(self, teacher: Policy) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self._kl = 0.0  # of this iteration, over all ranks

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        student = data.policy
        if student.action_code is None:
            raise UserError(
                f"{type(student).__name__} draws numbers that no other policy can score: grpo.advantage=grpo "
                "grpo.teacher=null"
            )
        if self.teacher.chunk_steps != student.chunk_steps:
            raise UserError(
                f"the teacher decides {self.teacher.chunk_steps} control steps at a time, the policy "
                f"{student.chunk_steps}: grpo.teacher=FOLDER of a policy with chunks of {student.chunk_steps}"
            )
        if self.teacher.action_code != student.action_code:
            raise UserError(
                "the teacher's action tokens stand for other commands than the policy's (head, or quantiles that "
                "normalise actions): grpo.teacher=FOLDER of a policy with the same dataset_statistics.json"
            )
        check_policy(data.pool, self.teacher)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.trainer, self.data = trainer, data_of(trainer)
        self.teacher.to(trainer.strategy.root_device)

    @torch.no_grad()
    def set_advantages(self, groups: Sequence[RolloutGroup]) -> None:
        total = torch.zeros(2, dtype=torch.float64)
        for trajectory in (t for group in groups for t in group.trajectories):
            batch = ChunkBatch.from_trajectories([trajectory])
            advantage_NLA = distillation_advantage(
                self._logprob(batch), trajectory.actions.logprob_NLA, batch.token_mask_NLA
            )
            trajectory.actions.extras["advantage"] = advantage_NLA
            counted_N = batch.token_mask_NLA.flatten(1).sum(1)
            trajectory.advantage_N = advantage_NLA.flatten(1).sum(1) / counted_N
            total += torch.stack([-advantage_NLA.double().sum(), counted_N.double().sum()])
        summed, counted = all_reduce_sum(total, self.trainer).tolist()
        self._kl = summed / counted

    def _logprob(self, batch: ChunkBatch) -> Tensor:
        rows = self.data.grpo.micro_rows or len(batch)
        temperature = self.data.rollout.temperature
        parts = [
            self.teacher.log_prob(batch.rows(i, i + rows), temperature)[0].cpu() for i in range(0, len(batch), rows)
        ]
        return torch.cat(parts)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _ = epoch_of(trainer).groups  # collected by now
        pl_module.log("distill/kl", self._kl, on_step=False, on_epoch=True, batch_size=1)
