"""Which chunks: those where a critic's expectation changed most. What they learn: the advantage of their episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import lightning as L
from torch import Tensor

from callbacks.masks.advantage_mask import AdvantageMask
from vla_rl.functional.advantages import group_advantage
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.plan import check_compared
from vla_rl.types import RolloutGroup, Trajectory


class CriticChoice(AdvantageMask):
    """Keeps chunks as `AdvantageMask` does, and trains them with the group's advantage (`group_advantage`): against
    `AdvantageMask` and a mask without a critic it tells what choosing is worth from what crediting is worth.

    Arguments: see `AdvantageMask`.

    Raises:
        UserError: as `AdvantageMask`; for groups of one episode.
    """

    name: ClassVar[str] = "critic_choice"

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        super().check_run(data, callbacks)
        check_compared(data.rollout, f"mask={self.name}", "mask=advantage")

    def set_advantages(self, groups: Sequence[RolloutGroup]) -> None:
        """After the critic, which comes before the mask."""
        for group in groups:
            advantage_G = group_advantage(group.reward_G, self.data.grpo.advantage_eps)
            for trajectory, advantage in zip(group.trajectories, advantage_G.tolist(), strict=True):
                trajectory.actions.extras["critic_advantage"] = trajectory.advantage_N
                trajectory.actions.extras.pop("step_advantage", None)
                trajectory.set_advantage(advantage)

    def weight_of(self, trajectory: Trajectory) -> Tensor:
        return trajectory.actions.extras["critic_advantage"].abs()
