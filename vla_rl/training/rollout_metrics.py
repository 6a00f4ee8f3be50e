"""Statistics of rollouts as torchmetrics: counts that are summed over ranks, and the rates made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from vla_rl.functional.statistics import clusters_of
from vla_rl.rollout.epoch import RolloutEpoch
from vla_rl.types import Episode, Trajectory


class RolloutStatistics(Metric):
    """An iteration's groups: how many, with how much spread; success and control steps of their episodes."""

    full_state_update = False
    episodes: Tensor
    successes: Tensor
    groups: Tensor
    groups_with_spread: Tensor
    steps: Tensor
    steps_of_successes: Tensor
    trained: Tensor  # trajectories that are trained on

    def __init__(self) -> None:
        super().__init__()
        for name in ("episodes", "successes", "groups", "groups_with_spread", "steps", "steps_of_successes", "trained"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, epoch: RolloutEpoch) -> None:
        trajectories = [t for group in epoch.groups for t in group.trajectories]
        successes = [t for t in trajectories if t.success]
        self.episodes += len(trajectories)
        self.successes += len(successes)
        self.groups += len(epoch.groups)
        self.groups_with_spread += sum(group.has_spread for group in epoch.groups)
        self.steps += sum(t.steps for t in trajectories)
        self.steps_of_successes += sum(t.steps for t in successes)
        self.trained += len(epoch.training_trajectories)

    def compute(self) -> dict[str, float]:
        """By the tags of TensorBoard, and `trained`: trajectories that the update trains on."""
        rates = {
            "rollout/groups": self.groups,
            "rollout/success": self.successes / self.episodes,
            "rollout/groups_with_spread": self.groups_with_spread / self.groups,
            "rollout/steps": self.steps / self.episodes,
            "trained": self.trained,
        }
        if self.successes:
            rates["rollout/steps_of_successes"] = self.steps_of_successes / self.successes
        return {tag: float(value) for tag, value in rates.items()}


class HeldoutSuccess(Metric):
    """Success of an evaluation whose episodes are shared out over ranks, by pair of task and initial state."""

    full_state_update = False
    success_E: Tensor  # 1 where this rank ran the episode and it succeeded

    def __init__(self) -> None:
        super().__init__()
        self.add_state("success_E", torch.zeros(0, dtype=torch.int64), dist_reduce_fx="sum")
        self._pairs: list[tuple[int, int]] = []

    def update(self, trajectories: Sequence[Trajectory], episodes: Sequence[Episode]) -> None:
        """The evaluation, at once.

        Args:
            trajectories: those that this rank ran.
            episodes: those of all ranks, the same everywhere.
        """
        succeeded = {t.episode.uid for t in trajectories if t.success}
        self.success_E = torch.tensor([int(e.uid in succeeded) for e in episodes], device=self.device)
        self._pairs = [(e.task, e.init_state) for e in episodes]

    def compute(self) -> list[tuple[int, int]]:
        """Successes and episodes of each pair."""
        return clusters_of(self._pairs, [bool(success) for success in self.success_E.tolist()])
