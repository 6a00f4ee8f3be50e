import math

import pytest
from scipy.stats import binomtest, ttest_1samp

from vla_rl.functional.statistics import (
    MeanInterval,
    PairedTest,
    SuccessRate,
    clusters_of,
    effective_episodes,
    wilson_interval,
)
from vla_rl.rollout.plan import heldout_episodes


def test_wilson_interval_by_hand():
    # n=10, p=.8, z^2=3.8415: centre (.8+.19207)/1.38415=.71674; half 1.95996*sqrt(.016+.009604)/1.38415=.22658
    assert wilson_interval(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)
    assert wilson_interval(0, 4)[0] == pytest.approx(0.0, abs=1e-12)


def test_the_interval_holds_the_rate_at_both_ends():
    for n in range(1, 200):  # figures draw the distances, which must not be negative, whatever the rounding
        assert wilson_interval(0, n)[0] == 0.0
        assert wilson_interval(n, n)[1] == 1.0


@pytest.mark.parametrize(("successes", "episodes"), [(0, 3), (1, 7), (8, 10), (50, 100), (999, 1000), (5, 5)])
def test_the_interval_is_scipys(successes, episodes):
    theirs = binomtest(successes, episodes).proportion_ci(method="wilson")
    assert wilson_interval(successes, episodes) == pytest.approx((theirs.low, theirs.high), abs=1e-7)


def test_several_samples_of_a_state_count_as_its_cluster():
    """p = 5/8; y_c - p n_c = .75, .75, -.25, -1.25; V = 4/3 * 2.75 / 64 = .057292; p (1 - p) / V = .234375 / .057292"""
    clusters = [(2, 2), (2, 2), (1, 2), (0, 2)]
    assert effective_episodes(clusters) == pytest.approx(4.0909, abs=1e-4)
    rate = SuccessRate.of_clusters(clusters)
    assert (rate.successes, rate.episodes, rate.rate) == (5, 8, 0.625)
    # Wilson at n = 4.0909: centre (.625 + .46952) / 1.93904, half 1.95996 sqrt(.057292 + .057386) / 1.93904
    assert (rate.wilson_low, rate.wilson_high) == pytest.approx((0.22217, 0.90675), abs=1e-4)
    assert rate.wilson_low < SuccessRate.of(5, 8).wilson_low < SuccessRate.of(5, 8).wilson_high < rate.wilson_high


def test_states_that_always_end_alike_are_one_episode_each():
    # three of five states succeed in all of their 10 episodes: V = 5/4 * (3 * 4^2 + 2 * 6^2) / 50^2 = .06
    assert effective_episodes([(10, 10)] * 3 + [(0, 10)] * 2) == pytest.approx(0.24 / 0.06)


def test_where_nothing_can_be_estimated_states_count_and_chance_never_narrows():
    assert effective_episodes([(5, 5)] * 4) == 4
    assert effective_episodes([(0, 5)] * 4) == 4
    assert effective_episodes([(3, 9)]) == 1
    assert effective_episodes([(1, 2)] * 6) == 12  # all states have the same rate
    assert effective_episodes([(1, 1)] * 3 + [(0, 1)] * 7) == 10  # independent


def test_distinct_states_have_the_plain_interval():
    assert SuccessRate.of_clusters([(1, 1)] * 8 + [(0, 1)] * 2) == SuccessRate.of(8, 10)


def test_clusters_by_hand():
    assert clusters_of(["a", "b", "a", "c"], [True, True, False, False]) == [(1, 2), (1, 1), (0, 1)]


def test_mean_interval_by_hand():
    # s = .1, t(.975, 2) = 4.30265: half .430265 / sqrt 3
    found = MeanInterval.of([0.4, 0.5, 0.6])
    assert (found.mean, found.half, found.count) == pytest.approx((0.5, 0.248414, 3), abs=1e-5)
    theirs = ttest_1samp([0.4, 0.5, 0.6], 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_one_value_has_no_interval():
    found = MeanInterval.of([0.4])
    assert found.mean == 0.4
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_success_rate_prints_its_counts():
    assert str(SuccessRate.of(8, 10)) == "0.800 [0.490, 0.943] (8/10)"


def test_every_pair_comes_once_before_any_comes_again():
    pairs = [(e.task, e.init_state) for e in heldout_episodes([3, 5], (40, 43), 8, seed=1)]
    assert pairs == [(3, 40), (5, 40), (3, 41), (5, 41), (3, 42), (5, 42), (3, 40), (5, 40)]


def test_repeated_pairs_are_sampled_with_other_noise():
    seeds = [e.seed for e in heldout_episodes([3], (40, 41), 4, seed=1)]
    assert len(set(seeds)) == 4


def test_paired_test_by_hand():
    """20 episodes: 1 gained, 6 lost. p = 2 (C(7,0) + C(7,1)) / 2^7 = 16/128. Interval: N = 22, d = -5/22 = -.22727,
    se = sqrt(8 - 25/22) / 22 = 2.61986 / 22 = .119085, half = .23340."""
    first = [True] * 10 + [False] * 10
    second = [True] * 4 + [False] * 6 + [True] + [False] * 9
    test = PairedTest.of(first, second)
    assert (test.gained, test.lost, test.difference) == (1, 6, -0.25)
    assert test.p_value == pytest.approx(0.125)
    assert (test.low, test.high) == pytest.approx((-0.46067, 0.00613), abs=1e-4)
    assert str(test) == "-0.250 [-0.461, +0.006], 1 gained, 6 lost, p = 0.125"


def test_equal_outcomes_say_nothing():
    test = PairedTest.of([True, False] * 5, [True, False] * 5)
    assert (test.gained, test.lost, test.difference, test.p_value) == (0, 0, 0.0, 1.0)
    assert test.low == -test.high < 0  # half = 1.96 / 12
    assert test.high == pytest.approx(0.16333, abs=1e-5)


def test_only_the_same_episodes_can_be_paired():
    with pytest.raises(ValueError):
        PairedTest.of([True], [True, False])
    with pytest.raises(ValueError):
        PairedTest.of_clusters("aa", [True], [True, False])


def test_paired_test_of_clusters_by_hand():
    """Four states sampled twice each, gained - lost = 2, 1, 1, -1, together 3 of 8.

    p: the sums of +-2 +-1 +-1 +-1 that are at least 3 from 0 are 5, 3, 3, 3 and their negatives: 8 of 16.
    Interval: V = 4/3 (1.25^2 + .25^2 + .25^2 + 1.75^2) / 64 = .0989583, of one episode 5/8 - 9/64 = .484375, effective
    number 4.89474. Gained 4 and lost 1 of 8 count as 2.44737 and .61184, N = 6.89474: d = 1.83553 / N = .26622,
    se = sqrt(3.05921 + 1 - 1.83553^2 / N) / N = .27406, half = .53715.
    """
    keys = [*"aabbccdd"]
    first = [False, False, False, False, True, False, True, True]
    second = [True, True, True, False, True, True, True, False]
    test = PairedTest.of_clusters(keys, first, second)
    assert (test.gained, test.lost, test.difference, test.p_value) == (4, 1, 0.375, 0.5)
    assert (test.low, test.high) == pytest.approx((-0.27093, 0.80337), abs=1e-4)
    mirrored = PairedTest.of_clusters(keys, second, first)
    assert (mirrored.difference, mirrored.low, mirrored.p_value) == (-0.375, pytest.approx(-test.high), 0.5)


def test_clusters_that_agree_in_themselves_count_as_one_episode_each():
    keys = [*range(10)] * 5
    first, second = [False] * 50, [True] * 6 + [False] * 4
    test = PairedTest.of_clusters(keys, first, second * 5)
    alone = PairedTest.of(first[:10], second)
    assert test.p_value == alone.p_value == 2 / 2**6
    # effective number p (1 - p) / V = .24 / (10/9 * 10 * 25 * .24 / 2500) = 9; gained 5.4 of 9, N = 11: d = .49091,
    # se = sqrt(6.4 - 5.4^2 / 11) / 11 = .17602, half = .34500
    assert (test.low, test.high) == pytest.approx((0.14591, 0.83591), abs=1e-4)
    assert PairedTest.of(first, second * 5).p_value < 1e-8


def test_paired_test_of_clusters_of_one_is_mcnemars():
    first, second = [True] * 10 + [False] * 10, [True] * 4 + [False] * 6 + [True] + [False] * 9
    assert PairedTest.of_clusters(range(20), first, second) == PairedTest.of(first, second)


def test_nothing_is_estimated_from_clusters_that_never_differ():
    test = PairedTest.of_clusters([*"aabb"], [True] * 4, [True] * 4)
    assert (test.difference, test.p_value) == (0, 1)
    assert test.high == PairedTest.of([True] * 2, [True] * 2).high  # two states
