"""How often and how fast a policy succeeds when it executes windows of a given length, on held-out initial states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla_rl.distributed.collectives import gather_lists
from vla_rl.functional.statistics import MeanInterval, SuccessRate, clusters_of
from vla_rl.rollout.datamodule import RolloutDataModule


@dataclass(frozen=True, slots=True)
class WindowResult:
    """Episodes of one window."""

    window: int  # control steps executed of each chunk
    states: tuple[tuple[int, int], ...]  # successes and episodes of each pair of task and initial state
    steps: tuple[int, ...]  # control steps of each success, sorted

    @property
    def episodes(self) -> int:
        return sum(episodes for _, episodes in self.states)

    @property
    def success(self) -> SuccessRate:
        return SuccessRate.of_clusters(self.states)

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
        return {"window": self.window, "states": [list(state) for state in self.states], "steps": list(self.steps)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> WindowResult:
        steps = content["steps"]
        if "states" not in content:  # of a version that took each episode for a state of its own
            content = content | {"states": [(int(n < len(steps)), 1) for n in range(content["episodes"])]}
        return cls(content["window"], tuple((won, of) for won, of in content["states"]), tuple(steps))


def measure_windows(
    data: RolloutDataModule, windows: Sequence[int], episodes: int, decoding: str = "sampled"
) -> list[WindowResult]:
    """Run the same held-out episodes with each window, shared out over ranks.

    Args:
        data: attached to a trainer.
        episodes: per window; greedy ones that would repeat another are left out.
        decoding: `sampled` or `greedy`.
    """
    found = []
    for window in windows:
        batch = data.heldout(decoding, episodes)
        for episode in batch.episodes:
            episode.window = window
        trajectories, _ = data.run(batch)
        steps = dict(gather_lists([(t.episode.uid, t.steps) for t in trajectories if t.success], data.attached_trainer))
        states = clusters_of([(e.task, e.init_state) for e in batch.episodes], [e.uid in steps for e in batch.episodes])
        found.append(WindowResult(window, tuple(states), tuple(sorted(steps.values()))))
    return found
