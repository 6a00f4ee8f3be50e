"""Single-phase masking (the ablation PCM's paper calls full masking): nothing but the most divergent phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from callbacks.masks.pcm import PCM


class SinglePhase(PCM):
    """Keeps up to `budget` chunks of the phase with the highest C_c, drawn uniformly; all phases before the first C_c.

    Statistics, their refresh and their log are those of `PCM`. A trajectory that never visits the phase keeps nothing.

    Args:
        budget: chunks kept of a trajectory, at most: a number, or `{fraction: 0.19}` of all its chunks.
        refresh_every: iterations between two choices of the phase.
        labeller: what splits trajectories into phases (`callbacks.masks.phase_scores`).
    """

    def __init__(self, budget: int | Mapping[str, Any] = 12, refresh_every: int = 5, labeller: str = "gripper") -> None:
        super().__init__(budget=budget, refresh_every=refresh_every, labeller=labeller)

    def weights(self, score_F: Tensor) -> Tensor:
        best = score_F.nan_to_num(nan=0.0).argmax()
        return torch.nn.functional.one_hot(best, len(score_F)).double()
