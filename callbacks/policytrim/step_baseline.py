"""`StepBaseline`: how many steps the initial policy needs, per task. Measured once, before the first iteration."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch

from vla_rl.distributed.collectives import all_reduce_sum
from vla_rl.functional.rewards import baseline_steps
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.epoch import HeldoutBatch
from vla_rl.rollout.plan import heldout_episodes
from vla_rl.types import Trajectory

STATE = ("steps", "calls")


class StepBaseline:
    """S_base and the calls (decisions) of an episode, of each task.

    Args:
        episodes: measured per task, sampled like rollouts, on the first training states.
        factor: of the mean steps over successes.
    """

    def __init__(self, episodes: int, factor: float) -> None:
        self.episodes, self.factor = episodes, factor
        self.steps: dict[int, float] = {}  # S_base by task
        self.calls: dict[int, float] = {}  # mean calls of a success by task

    @property
    def known(self) -> bool:
        return bool(self.steps)

    def measure(self, data: RolloutDataModule, window: int, trainer: L.Trainer) -> None:
        """Run the policy as it is, over all ranks.

        Args:
            window: control steps executed of each chunk.
        """
        tasks = list(data.pool.tasks)
        episodes = heldout_episodes(tasks, data.rollout.train_init_states, self.episodes * len(tasks), data.seed)
        for episode in episodes:
            episode.window = window
        trajectories, _ = data.run(HeldoutBatch("sampled", episodes))
        count_K3 = torch.zeros(len(tasks), 3, dtype=torch.float64)
        for t in (t for t in trajectories if t.success):
            count_K3[tasks.index(t.episode.task)] += torch.tensor([1.0, t.steps, len(t)], dtype=torch.float64)
        success_K, steps_K, calls_K = all_reduce_sum(count_K3, trainer).unbind(1)
        longest = data.max_chunks_of(1)
        steps = baseline_steps(steps_K, success_K, self.factor, longest)
        calls = baseline_steps(calls_K, success_K, 1.0, math.ceil(longest / window))
        self.steps = dict(zip(tasks, steps.tolist(), strict=True))
        self.calls = dict(zip(tasks, calls.tolist(), strict=True))
        if trainer.is_global_zero:
            for task, successes in zip(tasks, success_K.tolist(), strict=True):
                print(
                    f"task {task}: {successes:.0f} of {self.episodes} succeed before training, "
                    f"S_base {self.steps[task]:.1f} steps",
                    flush=True,
                )

    def steps_of(self, trajectory: Trajectory) -> float:
        """S_base of the trajectory's task."""
        return self.steps[trajectory.episode.task]

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict[name])
