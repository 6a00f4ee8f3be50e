"""Inclusion probabilities, estimators and the knee, with numbers worked out by hand."""

import pytest
import torch

from vla_rl.distributed.seeding import seeded_generator
from vla_rl.functional.divergence import cumulative_share, knee
from vla_rl.functional.losses import token_weight
from vla_rl.functional.sampling import (
    ESTIMATORS,
    plackett_luce_inclusion,
    proportional_inclusion,
    systematic_sample,
    top_threshold,
)

WEIGHTS = torch.tensor([1.0, 1, 1, 1, 0.5, 0.5, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1])


class TestPlackettLuce:
    def test_two_of_three(self):
        # pairs: {0,1} .7071, {0,2} .2167, {1,2} .0762 (worked out in test_phases.py)
        inclusion_N = plackett_luce_inclusion(torch.tensor([0.6, 0.3, 0.1]), 2)
        assert inclusion_N.tolist() == pytest.approx([0.9238, 0.7833, 0.2929], abs=1e-4)

    def test_one_of_n_is_the_weight(self):
        inclusion_N = plackett_luce_inclusion(WEIGHTS, 1)
        torch.testing.assert_close(inclusion_N, (WEIGHTS / WEIGHTS.sum()).double(), atol=1e-4, rtol=0)

    def test_adds_up_to_the_budget(self):
        for budget in (1, 4, 11, 12, 20):
            assert float(plackett_luce_inclusion(WEIGHTS, budget).sum()) == pytest.approx(min(budget, 12), abs=1e-3)

    @pytest.mark.parametrize(
        ("weights", "budget", "expected", "error"),
        [
            # both small ones are drawn with 2 * .1/1.2 * .1/1.1 = 1/66: the large one otherwise, they share the rest
            ([1.0, 0.1, 0.1], 2, [65 / 66, 67 / 132, 67 / 132], 1e-5),
            ([1.0, 1e-3], 1, [1 / 1.001, 1e-3 / 1.001], 1e-3),
            ([1.0, 1e-4, 1e-4], 2, [1.0, 0.5, 0.5], 1e-3),  # but for 2e-8
            ([1.0, 1.0, 1e-5], 2, [1.0, 1.0, 2e-5], 1e-3),
            ([1.0, 0.3, 0.1], 3, [1.0, 1.0, 1.0], 0.0),
        ],
    )
    def test_weights_of_other_sizes(self, weights, budget, expected, error):
        inclusion_N = plackett_luce_inclusion(torch.tensor(weights), budget)
        assert inclusion_N.tolist() == pytest.approx(expected, abs=error, rel=0)

    def test_weight_zero_is_never_drawn(self):
        assert plackett_luce_inclusion(torch.tensor([1.0, 0.0, 1.0, 2.0]), 2)[1] == 0
        assert plackett_luce_inclusion(torch.tensor([0.0, 0.0]), 2).tolist() == [0, 0]


class TestProportional:
    def test_capped_at_one(self):
        # 2 * (6 1 1) / 8 = 1.5 .25 .25: the first is certain, the one left goes half and half
        assert proportional_inclusion(torch.tensor([6.0, 1, 1]), 2).tolist() == [1.0, 0.5, 0.5]
        # capping the first lifts the second above 1: 10 -> 1; then 2 * (5 1 1) / 7 = 1.43 -> 1; one left of (1 1)
        assert proportional_inclusion(torch.tensor([10.0, 5, 1, 1]), 3).tolist() == [1.0, 1.0, 0.5, 0.5]

    def test_uncapped_is_proportional(self):
        inclusion_N = proportional_inclusion(torch.tensor([4.0, 2, 1, 1]), 2)
        assert inclusion_N.tolist() == [1.0, 0.5, 0.25, 0.25]
        assert proportional_inclusion(torch.tensor([0.0, 1.0]), 5).tolist() == [0, 1]


def test_a_systematic_draw_takes_the_chunks_that_hold_the_ticks():
    """Probabilities .5 .5 .25 .75 on a line, edges .5 1 1.25 2: u and u + 1 fall into chunks 0 2, 0 3 or 1 3."""
    seen = set()
    for seed in range(12):
        u = float(torch.rand((), generator=seeded_generator(seed), dtype=torch.float64))
        drawn = systematic_sample(torch.tensor([0.5, 0.5, 0.25, 0.75]), seeded_generator(seed)).tolist()
        assert drawn == ([0, 2] if u < 0.25 else [0, 3] if u < 0.5 else [1, 3])
        seen.add(tuple(drawn))
    assert len(seen) == 3


class TestEstimators:
    def test_numbers(self):
        inclusion_K, tokens_K = torch.tensor([0.5, 1.0]), torch.tensor([2, 1])
        weight_K, share_K = ESTIMATORS["ht"].loss_weights(inclusion_K, tokens_K, 6)
        assert weight_K.tolist() == [2.0, 1.0]
        assert share_K.tolist() == [2.0, 2.0]
        weight_K, share_K = ESTIMATORS["hajek"].loss_weights(inclusion_K, tokens_K, 6)
        assert weight_K.tolist() == share_K.tolist() == [2.0, 1.0]
        assert ESTIMATORS["paper"].loss_weights is None

    def test_probabilities_are_those_of_the_draw(self):
        of_three = {name: ESTIMATORS[name].inclusion(torch.tensor([0.6, 0.3, 0.1]), 2).tolist() for name in ESTIMATORS}
        assert of_three["paper"] == pytest.approx([0.9238, 0.7833, 0.2929], abs=1e-4)  # one after the other
        assert (
            of_three["ht"] == of_three["hajek"] == pytest.approx([1.0, 0.75, 0.25])
        )  # in proportion, the first capped

    def test_token_weight_divides_by_the_shares(self):
        # one trajectory, chunks of 2 and 1 tokens, weights 2 and 1
        mask_NLA = torch.tensor([[[1, 1]], [[1, 0]]]).bool()
        trajectory_N = torch.tensor([0, 0])

        def weigh(share_N, norm="traj_mean"):
            share_N = torch.tensor(share_N)
            tokens = float((mask_NLA.flatten(1).sum(1) * share_N).sum())
            return token_weight(
                mask_NLA, trajectory_N, trajectories=1, tokens=tokens, norm=norm, longest=10,
                weight_N=torch.tensor([2.0, 1.0]), share_N=share_N,
            ).flatten().tolist()  # fmt: skip

        assert weigh([2.0, 2.0]) == pytest.approx([2 / 6, 2 / 6, 1 / 6, 0])  # ht: by the trajectory's 6 tokens
        assert weigh([2.0, 1.0]) == pytest.approx([2 / 5, 2 / 5, 1 / 5, 0])  # hajek: by 2 * 2 + 1
        assert weigh([2.0, 1.0], "token_mean") == pytest.approx([2 / 5, 2 / 5, 1 / 5, 0])
        assert weigh([2.0, 2.0], "const") == pytest.approx([0.2, 0.2, 0.1, 0])


class TestKnee:
    def test_curve_and_corner(self):
        # 10 chunks: 2 of score 1, 3 of score .5, 5 of score .1: total 4. Best phase first: 2/4, 3.5/4, 4/4
        score_F, chunks_F = torch.tensor([0.1, 1.0, 0.5]), torch.tensor([5.0, 2.0, 3.0])
        fraction, share = cumulative_share(score_F, chunks_F)
        assert fraction.tolist() == pytest.approx([0, 0.2, 0.5, 1])
        assert share.tolist() == pytest.approx([0, 0.5, 0.875, 1])
        # above the diagonal: 0 .3 .375 0
        assert knee(fraction, share) == 2

    def test_without_scores_or_differences_everything_is_kept(self):
        for score in (0.0, 0.7, float("nan")):
            fraction, share = cumulative_share(torch.full((3,), score), torch.tensor([5.0, 2.0, 3.0]))
            assert knee(fraction, share) == 3
            assert fraction[3] == share[3] == 1

    def test_a_phase_never_visited_takes_no_room(self):
        fraction, share = cumulative_share(torch.tensor([1.0, 9.0, 0.1]), torch.tensor([1.0, 0.0, 1.0]))
        assert fraction.tolist() == [0, 0, 0.5, 1]
        assert knee(fraction, share) == 2


class TestTopThreshold:
    def test_the_largest_keys_lie_above(self):
        key_N = torch.tensor([3.0, -7.5, 0.25, 100.0, 0.2500001], dtype=torch.float64)
        for keep, above in ((0, []), (1, [3]), (3, [0, 3, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])):
            threshold = top_threshold(lambda t: int((key_N > t).sum()), keep)
            assert (key_N > threshold).nonzero().flatten().tolist() == above

    def test_never_drawn(self):
        key_N = torch.tensor([1.0, -torch.inf])
        threshold = top_threshold(lambda t: int((key_N > t).sum()), 2)
        assert (key_N > threshold).tolist() == [True, False]
