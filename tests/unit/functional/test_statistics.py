import pytest

from vla_rl.functional.statistics import PairedTest, SuccessRate, wilson_interval
from vla_rl.rollout.plan import heldout_episodes


def test_wilson_interval_by_hand():
    # n=10, p=.8, z^2=3.8415: centre (.8+.19207)/1.38415=.71674; half 1.95996*sqrt(.016+.009604)/1.38415=.22658
    assert wilson_interval(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)
    assert wilson_interval(0, 4)[0] == pytest.approx(0.0, abs=1e-12)


def test_the_interval_holds_the_rate_at_both_ends():
    for n in range(1, 200):  # figures draw the distances, which must not be negative, whatever the rounding
        assert wilson_interval(0, n)[0] == 0.0 and wilson_interval(n, n)[1] == 1.0


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
