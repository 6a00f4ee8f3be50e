import pytest

from vla_rl.evaluation import SuccessRate, heldout_episodes, wilson_interval


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
