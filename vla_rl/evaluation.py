"""Which held-out episodes are run, and the interval of a success rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vla_rl.distributed import stable_seed
from vla_rl.types import Episode


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """A proportion with its 95% Wilson interval."""

    rate: float
    successes: int
    episodes: int
    wilson_low: float
    wilson_high: float

    @classmethod
    def of(cls, successes: int, episodes: int) -> SuccessRate:
        low, high = wilson_interval(successes, episodes)
        return cls(successes / episodes, successes, episodes, low, high)

    def __str__(self) -> str:
        return f"{self.rate:.3f} [{self.wilson_low:.3f}, {self.wilson_high:.3f}] ({self.successes}/{self.episodes})"


def wilson_interval(successes: int, episodes: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a binomial proportion (Wilson, 1927).

        centre = (p + z^2 / 2n) / (1 + z^2 / n),  half = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n)

    Args:
        z: normal quantile; the default is two-sided 95%.

    Example: 8 of 10 -> (0.490, 0.943).
    """
    p, n = successes / episodes, episodes
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # rounding alone leaves this order


def heldout_episodes(tasks: Sequence[int], init_states: Sequence[int], episodes: int, seed: int) -> list[Episode]:
    """`episodes` pairs (task, initial state), tasks taking turns and states in order; past the last pair they begin
    again with other sampling seeds. They depend on nothing else, so every policy is measured on the same ones."""
    low, high = init_states
    return [
        Episode(
            uid=i,
            task=tasks[i % len(tasks)],
            init_state=low + (i // len(tasks)) % (high - low),
            seed=stable_seed(seed, "evaluation", i),
        )
        for i in range(episodes)
    ]
