"""Intervals of success rates and means, and tests between two policies. All intervals are two-sided, 95%.

Which one applies depends on what varies: the episodes of one run (Wilson), states that were run several times each
(clusters), or the seeds of a training (Student's t).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
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
        """Of independent episodes."""
        low, high = wilson_interval(successes, episodes)
        return cls(successes / episodes, successes, episodes, low, high)

    @classmethod
    def of_clusters(cls, clusters: Sequence[tuple[int, int]]) -> SuccessRate:
        """Of episodes that come in clusters: several samples of one initial state.

        Args:
            clusters: successes and episodes of each.
        """
        successes, episodes = (sum(column) for column in zip(*clusters, strict=True))
        effective = effective_episodes(clusters)
        rate = successes / episodes
        low, high = wilson_interval(rate * effective, effective)
        return cls(rate, successes, episodes, low, high)

    def __str__(self) -> str:
        return f"{self.rate:.3f} [{self.wilson_low:.3f}, {self.wilson_high:.3f}] ({self.successes}/{self.episodes})"


def wilson_interval(successes: float, episodes: float, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a binomial proportion (Wilson, 1927).

        centre = (p + z^2 / 2n) / (1 + z^2 / n),  half = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n)

    `scipy.stats.binomtest(...).proportion_ci(method="wilson")` gives the same for whole numbers; an effective number of
    episodes (`effective_episodes`) need not be one.

    Args:
        z: normal quantile; the default is two-sided 95%.

    Example: 8 of 10 -> (0.490, 0.943).
    """
    p, n = successes / episodes, episodes
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # rounding alone leaves this order


def effective_episodes(clusters: Sequence[tuple[int, int]]) -> float:
    """How many independent episodes say as much about the success rate as these, of which several share a state.

    With y_c successes in the n_c episodes of cluster c, of C clusters, n = sum n_c and p = sum y_c / n, the variance of
    p that allows for any correlation inside a cluster is that of a ratio (Cochran, Sampling Techniques, 1977)

        V = C / (C - 1) * sum_c (y_c - p n_c)^2 / n^2

    and the effective number p (1 - p) / V (Kish, Survey Sampling, 1965: n over the design effect). Wilson's interval
    with it is what Dean and Pagano (2015, J. Survey Statistics and Methodology 3) recommend for clustered proportions.
    It is at most n, so that chance agreement never narrows an interval, and C where nothing can be estimated: all
    episodes ended alike, or there is one cluster.

    Args:
        clusters: successes and episodes of each.

    Example: four states sampled twice each, (2, 2), (2, 2), (1, 2), (0, 2): p = 5/8,
        V = 4/3 * (.75^2 + .75^2 + .25^2 + 1.25^2) / 64 = .0573, effective number .2344 / .0573 = 4.09 in place of 8.
    """
    successes, episodes = (sum(column) for column in zip(*clusters, strict=True))
    rate = successes / episodes
    return _effective_number(clusters, rate * (1 - rate))


def _effective_number(clusters: Sequence[tuple[int, int]], variance_of_one: float) -> float:
    """`effective_episodes` of the mean of any number.

    Args:
        clusters: sum of the number over the episodes, and episodes of each.
        variance_of_one: of the number, over all episodes.
    """
    total, episodes = (sum(column) for column in zip(*clusters, strict=True))
    if all(size == 1 for _, size in clusters):
        return episodes  # independent
    mean, count = total / episodes, len(clusters)
    if count == 1 or variance_of_one == 0:
        return count
    squares = sum((of_cluster - mean * size) ** 2 for of_cluster, size in clusters)
    variance = count / (count - 1) * squares / episodes**2
    return min(episodes, variance_of_one / variance) if variance else episodes


def clusters_of(keys: Sequence[Hashable], success: Sequence[bool]) -> list[tuple[int, int]]:
    """Successes and episodes of each key (a task and its initial state), episode by episode.

    Example: keys a b a, success T T F -> [(1, 2), (1, 1)].
    """
    episodes, successes = Counter(keys), Counter(key for key, won in zip(keys, success, strict=True) if won)
    return [(successes[key], size) for key, size in episodes.items()]


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """A mean with its 95% interval by Student's t; the bounds are NaN where there is one value."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanInterval:
        """Of independent values, one for each seed: what differs between seeds is then in the interval.

            mean -+ t(.975, n - 1) s / sqrt(n),  s^2 = sum (x - mean)^2 / (n - 1)     (Student, 1908)

        Of two arms that share their seeds, the interval of the paired differences is that of x_second - x_first by
        seed: what a seed's initial states do to both arms cancels.

        Example: 0.4, 0.5, 0.6: s = 0.1, t(.975, 2) = 4.303 -> 0.5 -+ 0.248.
        """
        n = len(values)
        mean = sum(values) / n
        if n == 1:
            return cls(mean, math.nan, math.nan, 1)
        from scipy.stats import t  # here: it takes a second to import

        s = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
        half = float(t.ppf(0.975, n - 1)) * s / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n)

    @property
    def half(self) -> float:
        """Half of the interval; NaN where there is one value."""
        return (self.high - self.low) / 2


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
        low, high = _interval_of_difference(gained, lost, len(first))
        return cls(gained, lost, (gained - lost) / len(first), low, high, p_value)

    @classmethod
    def of_clusters(cls, keys: Sequence[Hashable], first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
        """Of episodes that come in clusters: several samples of one initial state. Where each is alone, it is `of`.

        The interval is that of `of` with the effective number of episodes (`effective_episodes`, of the differences) in
        place of their number. p compares |sum d_c|, d_c = gained - lost in cluster c, with all 2^C ways to flip the
        signs of the d_c, which are equally probable where the policies are equally good, however the samples of a
        cluster depend on each other (a randomisation test; Fisher, The Design of Experiments, 1935).

        Args:
            keys: of each episode, that of its cluster.

        Example: 4 clusters of two episodes, differences 2, 1, 1, -1: 8 of the 16 sums are at least 3 from 0, p = 0.5.
        """
        if len(set(keys)) == len(keys):
            return cls.of(first, second)
        gained_C = clusters_of(keys, [not a and b for a, b in zip(first, second, strict=True)])
        lost_C = clusters_of(keys, [a and not b for a, b in zip(first, second, strict=True)])
        clusters = [(gain - loss, size) for (gain, size), (loss, _) in zip(gained_C, lost_C, strict=True)]
        gained, lost, n = sum(gain for gain, _ in gained_C), sum(loss for loss, _ in lost_C), len(keys)
        difference = (gained - lost) / n
        effective = _effective_number(clusters, (gained + lost) / n - difference**2)
        low, high = _interval_of_difference(gained * effective / n, lost * effective / n, effective)
        return cls(gained, lost, difference, low, high, _sign_flip_p([d for d, _ in clusters]))

    def __str__(self) -> str:
        return (
            f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}], {self.gained} gained, {self.lost} lost, "
            f"p = {self.p_value:.3f}"
        )


def _interval_of_difference(gained: float, lost: float, episodes: float) -> tuple[float, float]:
    """95%, by Agresti and Min (2005): the formula is in `PairedTest.of`. The counts need not be whole."""
    n = episodes + 2
    centre = (gained - lost) / n
    half = Z_95 * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)


def _sign_flip_p(differences: Sequence[int]) -> float:
    """Share of all ways to flip the signs of the differences with a sum at least as far from 0 as theirs."""
    ways = Counter({0: 1})  # by sum
    for difference in differences:
        flipped: Counter[int] = Counter()
        for total, count in ways.items():
            flipped[total + difference] += count
            flipped[total - difference] += count
        ways = flipped
    least = abs(sum(differences))
    return sum(count for total, count in ways.items() if abs(total) >= least) / 2 ** len(differences)
