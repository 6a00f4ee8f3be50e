"""Which episodes an evaluation runs, the interval of a success rate, and the test between two policies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959964  # normal quantile of a two-sided 95% interval


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


def wilson_interval(successes: int, episodes: int, z: float = Z_95) -> tuple[float, float]:
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


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two policies on the same episodes. Only episodes that ended differently say anything."""

    gained: int  # failures of the first that are successes of the second
    lost: int
    difference: float  # success of the second minus that of the first
    low: float  # 95% interval of the difference
    high: float
    p_value: float  # exact McNemar, two-sided

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
        """The test between two policies' successes, episode by episode.

        `gained` of the `gained + lost` discordant episodes is Binomial(1/2) where the policies are equally good
        (McNemar, 1947, exact form). The interval is Agresti's and Min's (2005): half an episode is added to each of
        the four cells, N = n + 2,

            d = (gained - lost) / N,  se = sqrt(gained + lost + 1 - (gained - lost)^2 / N) / N,  d -+ 1.96 se

        Example: 1 gained, 6 lost of 20: difference -0.25, p = 0.125, interval [-0.46, 0.01].
        """
        from scipy.stats import binomtest  # here: it takes a second to import

        gained = sum(not a and b for a, b in zip(first, second, strict=True))
        lost = sum(a and not b for a, b in zip(first, second, strict=True))
        p_value = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
        n = len(first) + 2
        centre = (gained - lost) / n
        half = Z_95 * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / n) / n
        low, high = max(-1.0, centre - half), min(1.0, centre + half)
        return cls(gained, lost, (gained - lost) / len(first), low, high, p_value)

    def __str__(self) -> str:
        return (
            f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}], {self.gained} gained, {self.lost} lost, "
            f"p = {self.p_value:.3f}"
        )
