"""How often and how fast a policy succeeds when it executes windows of a given length, on held-out initial states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vla_rl.distributed.collectives import all_reduce_sum
from vla_rl.functional.statistics import MeanInterval, SuccessRate
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.rollout.epoch import HeldoutBatch
from vla_rl.rollout.plan import heldout_episodes


@dataclass(frozen=True, slots=True)
class WindowResult:
    """Episodes of one window."""

    window: int  # control steps executed of each chunk
    episodes: int
    steps: tuple[int, ...]  # control steps of each success, sorted

    @property
    def success(self) -> SuccessRate:
        return SuccessRate.of(len(self.steps), self.episodes)

    @property
    def mean_steps(self) -> float:
        """Over the successes; NaN without any."""
        return sum(self.steps) / len(self.steps) if self.steps else math.nan

    @property
    def steps_margin(self) -> float:
        """Half of the mean's 95% interval by Student's t; NaN with fewer than two successes."""
        return MeanInterval.of(self.steps).half if self.steps else math.nan

    @property
    def calls(self) -> float:
        """Decisions of a success, the mean of ceil(S / h); NaN without any."""
        return sum(math.ceil(s / self.window) for s in self.steps) / len(self.steps) if self.steps else math.nan

    def __str__(self) -> str:
        line = f"window {self.window}: success {self.success}"
        if self.steps:
            margin = f" +- {self.steps_margin:.1f}" if len(self.steps) > 1 else ""
            line += f", {self.mean_steps:.1f}{margin} steps and {self.calls:.1f} calls of a success"
        return line

    def to_dict(self) -> dict[str, Any]:
        return {"window": self.window, "episodes": self.episodes, "steps": list(self.steps)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> WindowResult:
        return cls(content["window"], content["episodes"], tuple(content["steps"]))


def measure_windows(
    data: RolloutDataModule, windows: Sequence[int], episodes: int, decoding: str = "sampled"
) -> list[WindowResult]:
    """Run the same held-out episodes with each window, shared out over ranks.

    Args:
        data: attached to a trainer.
        episodes: per window; of greedy ones at most one for each pair of task and initial state.
        decoding: `sampled` or `greedy`.
    """
    found = []
    for window in windows:
        planned = heldout_episodes(data.pool.tasks, data.rollout.heldout_init_states, episodes, data.seed, decoding)
        for episode in planned:
            episode.window = window
        trajectories, _ = data.run(HeldoutBatch(decoding, planned))
        succeeded_S = torch.zeros(data.max_chunks_of(1) + 1, dtype=torch.float64)  # by control steps
        for t in (t for t in trajectories if t.success):
            succeeded_S[t.steps] += 1
        count_S = all_reduce_sum(succeeded_S, data.attached_trainer).long()
        steps = torch.arange(len(count_S)).repeat_interleave(count_S)
        found.append(WindowResult(window, len(planned), tuple(steps.tolist())))
    return found
