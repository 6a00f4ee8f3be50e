"""The two stages of PolicyTrim: which windows a group executes, and what its trajectories earn.

The maths is in `vla_rl.functional.rewards`; `callbacks.policytrim.callback` says when which stage is on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from callbacks.policytrim.step_baseline import StepBaseline
from vla_rl.functional.rewards import (
    ASSIGNMENTS,
    SIGMA_FLOORS,
    Preset,
    extension_reward,
    factorised_advantage,
    reduction_reward,
    stability_penalty,
    step_reward,
)
from vla_rl.types import Episode, RolloutGroup

HORIZON_BASELINES = ("group", "factorised")


class Stage(Protocol):
    """What both stages answer, one group at a time."""

    def plan(self, episodes: Sequence[Episode], generator: torch.Generator) -> None:
        """Set each episode's window."""
        ...

    def reward(self, group: RolloutGroup) -> Tensor:
        """float32 [G]."""
        ...

    def advantage(self, group: RolloutGroup) -> Tensor | None:
        """float32 [G], where it is not the usual one of the rewards."""
        ...


class Extension:
    """Stage 1: windows of all lengths, longer ones earn more.

    Args:
        windows: gamma by window, from the original window to the widest.
        beta: what a whole chunk adds to the reward of a success.
        horizon_baseline: `group`, the usual advantage of the rewards; or `factorised`.
        assign: how windows are spread over a group, one of `vla_rl.functional.rewards.ASSIGNMENTS`.
    """

    def __init__(self, windows: dict[int, float], beta: float, horizon_baseline: str, assign: str) -> None:
        self.windows, self.beta = windows, beta
        self._factorised = horizon_baseline == "factorised"
        self._assign: Callable[[int, int, torch.Generator], Tensor] = ASSIGNMENTS[assign]

    def plan(self, episodes: Sequence[Episode], generator: torch.Generator) -> None:
        windows = list(self.windows)
        for episode, m in zip(episodes, self._assign(len(windows), len(episodes), generator).tolist(), strict=True):
            episode.window = windows[m]

    def reward(self, group: RolloutGroup) -> Tensor:
        return extension_reward(success_of(group), self._ratio(group), self.beta)

    def advantage(self, group: RolloutGroup) -> Tensor | None:
        if not self._factorised:
            return None
        return factorised_advantage(success_of(group), self._ratio(group), self.beta)

    def _ratio(self, group: RolloutGroup) -> Tensor:
        return torch.tensor([self.windows[t.window] for t in group.trajectories])


class Reduction:
    """Stage 2: one window, saved steps earn more, leaving the group's pace costs.

    Args:
        window: control steps executed of each chunk.
        values: coefficients of saved steps and of the penalty, and what becomes of a small sigma.
        sigma_floor_steps: the least sigma of steps, see `vla_rl.functional.rewards.stability_penalty`.
        baseline: S_base.
    """

    def __init__(self, window: int, values: Preset, sigma_floor_steps: float, baseline: StepBaseline) -> None:
        self.window, self.values, self.sigma_floor_steps, self.baseline = window, values, sigma_floor_steps, baseline

    def plan(self, episodes: Sequence[Episode], generator: torch.Generator) -> None:
        for episode in episodes:
            episode.window = self.window

    def terms(self, group: RolloutGroup) -> tuple[Tensor, Tensor]:
        """R_step and P_stab of each trajectory."""
        steps_G = steps_of(group)
        scale = SIGMA_FLOORS[self.values.sigma_floor]
        return (
            step_reward(steps_G, self.baseline.steps_of(group.trajectories[0])),
            stability_penalty(steps_G, success_of(group), self.values.penalty, self.sigma_floor_steps, scale),
        )

    def reward(self, group: RolloutGroup) -> Tensor:
        return reduction_reward(success_of(group), *self.terms(group), self.values.step_coef)

    def advantage(self, group: RolloutGroup) -> Tensor | None:
        return None


def success_of(group: RolloutGroup) -> Tensor:
    """1 on success, else 0, float32 [G]."""
    return torch.tensor([float(t.success) for t in group.trajectories])


def steps_of(group: RolloutGroup) -> Tensor:
    """Control steps executed, float32 [G]."""
    return torch.tensor([float(t.steps) for t in group.trajectories])
