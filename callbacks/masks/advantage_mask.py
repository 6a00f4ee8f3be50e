"""Masks that keep the chunks whose own advantage is large: where a critic's expectation changed most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from callbacks.masks.base import check_own_advantages
from callbacks.masks.global_mask import GlobalMask
from callbacks.masks.weighted import WeightedMask
from vla_rl.functional.sampling import ESTIMATORS, TOP, Estimator
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.types import Trajectory


class AdvantageMask(WeightedMask):
    """Keeps `budget` chunks of each trajectory by |A_t|; a chunk without advantage is never kept.

    Args:
        budget: chunks kept of a trajectory, at most: a number, or `{fraction: 0.19}`.
        estimator: `top` keeps the largest; `paper` draws one after the other in proportion and counts what is kept
            once; `ht` and `hajek` draw with exact inclusion probabilities and divide by them
            (`vla_rl.functional.sampling`).

    Raises:
        UserError: for a value outside its range, an estimator that does not exist, or, before anything is written,
            where all chunks of an episode have the same advantage.
    """

    estimators: ClassVar[Mapping[str, Estimator]] = {"top": TOP} | ESTIMATORS
    name: ClassVar[str] = "advantage"  # in `mask=...`

    def __init__(self, budget: int | Mapping[str, Any] = 12, estimator: str = "top") -> None:
        super().__init__(budget, estimator)

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        super().check_run(data, callbacks)
        check_own_advantages(data, f"mask={self.name}")

    def weight_of(self, trajectory: Trajectory) -> Tensor:
        return trajectory.advantage_N.abs()


class GlobalAdvantage(GlobalMask):
    """Keeps the chunks of the iteration with the largest |A_t|; chunks without advantage are never kept.

    Args:
        budget: chunks kept of a trajectory on average: a number, or `{fraction: 0.19}`.

    Raises:
        UserError: as `AdvantageMask`.
    """

    def __init__(self, budget: int | Mapping[str, Any] = 12) -> None:
        super().__init__(budget)

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        super().check_run(data, callbacks)
        check_own_advantages(data, "mask=global_advantage")

    def key(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        size_N = trajectory.advantage_N.abs().double()
        tie_break_N = torch.rand(len(trajectory), generator=generator, dtype=torch.float64)  # clipped ones are alike
        return torch.where(size_N > 0, size_N + 1e-6 * tie_break_N, -math.inf)
