"""Brightness and colour augmentation of the training rollouts' frames: each episode is lit by a lamp of its own.

The frame is changed before the policy acts on it, and what the policy saw is what is stored and trained on: old and new
log-probabilities are taken at the same pixels, so the probability ratio starts at 1. The lamp is drawn from the
episode's seed. Held-out episodes are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_rl.checks import check_number
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.types import Episode


@dataclass(frozen=True, slots=True)
class Lamp:
    """frame_HWC (uint8) -> the same frame under another light: always the same one for the same seed.

    frame * b * c    b uniform in [1 - brightness, 1 + brightness], c likewise with jitter, one for each channel
    """

    brightness: float
    jitter: float
    seed: int

    def __call__(self, frame_HWC: Tensor) -> Tensor:
        draw = torch.rand(4, generator=seeded_generator(self.seed, "lamp")) * 2 - 1
        gain_C = (1 + self.brightness * draw[0]) * (1 + self.jitter * draw[1:])
        return (frame_HWC * gain_C).round().clamp(0, 255).to(torch.uint8)


class Augment(RolloutCallback):
    """Gives each training episode a `Lamp`.

    Args:
        brightness: largest relative change of all channels together, in [0, 1).
        jitter: largest relative change of each channel alone, in [0, 1).

    Raises:
        UserError: for a value outside its range.
    """

    def __init__(self, brightness: float = 0.2, jitter: float = 0.1) -> None:
        for name, value in (("brightness", brightness), ("jitter", jitter)):
            check_number(f"callbacks.augment.{name}", value, 0.1, least=0, below=1)
        self.brightness, self.jitter = brightness, jitter

    def plan_rollouts(self, episodes: Sequence[Episode]) -> None:
        for episode in episodes:
            episode.augment = Lamp(self.brightness, self.jitter, episode.seed)
