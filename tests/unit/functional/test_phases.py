"""Phases, divergence, keep probabilities and selection, with numbers worked out by hand."""

import math

import pytest
import torch

from tests.helpers.make import make_trajectory
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.functional.divergence import collapse, divergence, keep_probability
from vla_rl.functional.phases import (
    PHASES,
    action_change,
    chunk_action,
    grasp_time,
    gripper_fraction,
    gripper_strict,
    label_phases,
    time_quantile,
    trajectory_phases,
)
from vla_rl.functional.sampling import select_chunks

NAN = math.nan


def letters(fractions, pre_lo):
    phase_N = label_phases(torch.tensor([float(f) for f in fractions.split()]), pre_lo=pre_lo)
    return "".join("aPARt"[phase] for phase in phase_N.tolist())


class TestPhases:
    @pytest.mark.parametrize(
        ("fractions", "strict", "positional"),
        [
            ("0 0 0 0 0 .375 1 1 1 1 .25 0 0 0 0 0", "aaaaaPAAAARRRttt", "aaaPPPAAAARRRttt"),
            ("0 0 0 0 .625 1 1 1 0 0 0 0", "aaaaAAAARRRt", "aaPPAAAARRRt"),
            ("0 .25 0 0 0 0 0 1 1 0 0 0 0 .25", "aaaaaaaAARRRtt", "aaaaPPPAARRRtt"),
            ("0 0 1 1 0 0 0 0 1 1 0", "aaAARRRaAAR", "PPAARPPPAAR"),
            ("0 0 0 0", "aaaa", "aaaa"),
            ("0 .625 .5 0", "aAAa", "aAAa"),  # gripping, but no sustained grip: the rest stays approach
            ("1 1", "AA", "AA"),
            ("0 0 .75 0", "aaAR", "PPAR"),  # just sustained
            ("1 0 0 0 0", "ARRRt", "ARRRt"),  # gripping from the start
        ],
    )
    def test_labels(self, fractions, strict, positional):
        assert letters(fractions, pre_lo=0.1) == strict
        assert letters(fractions, pre_lo=0.0) == positional

    def test_fraction_counts_executed_steps_only(self):
        gripper_closed_NL = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1]]).bool()
        # 3 of 8; of the second chunk 4 steps were executed, 2 of them closing
        assert gripper_fraction(gripper_closed_NL, torch.tensor([8, 4])).tolist() == [0.375, 0.5]

    def test_of_a_trajectory(self):
        trajectory = make_trajectory([0, 0, 0, 0, 8, 8, 0], success=False)
        assert trajectory_phases(trajectory).tolist() == [0, 1, 1, 1, 2, 2, 3]
        trajectory.success = True  # the outcome is no part of it
        assert trajectory_phases(trajectory).tolist() == [0, 1, 1, 1, 2, 2, 3]

    def test_to_the_letter_pre_grasp_needs_a_tenth_of_closing_steps(self):
        trajectory = make_trajectory([0, 1, 8, 8, 0])  # 0 and 1/8 before the grip
        assert gripper_strict(trajectory).tolist() == [0, 1, 2, 2, 3]
        assert trajectory_phases(trajectory).tolist() == [1, 1, 2, 2, 3]


class TestOtherLabellers:
    def test_time_quantile(self):
        assert time_quantile(make_trajectory([0] * 10)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert time_quantile(make_trajectory([0] * 3)).tolist() == [0, 1, 3]

    @pytest.mark.parametrize(
        ("action", "expected"),
        [
            ([0.0, 0.0, 1.0, 1.1, 1.6, 1.6], [0, 0, 2, 1, 2, 1]),  # changes 0 0 1 .1 .5 0, ranks 0 1 5 3 4 2
            ([0.0, 0.5, 0.6, 0.9, 1.8, 2.5], [0, 1, 0, 1, 2, 2]),  # changes 0 .5 .1 .3 .9 .7, ranks 0 3 1 2 5 4
        ],
    )
    def test_action_change(self, action, expected):
        assert action_change(make_trajectory([0] * 6, action=action)).tolist() == expected

    def test_the_distance_from_the_first_chunk_that_grips(self):
        """A few closing steps are no grip; a second grip changes nothing."""
        names = [
            grasp_time.phases[n] for n in grasp_time(make_trajectory([0, 0, 0, 0, 0, 3, 8, 8, 0, 0, 8, 0])).tolist()
        ]
        assert names == [
            *["earlier"] * 3, "3_before", "2_before", "1_before", "closing", "1_after", "2_after", "3_after",
            *["later"] * 2,
        ]  # fmt: skip
        assert grasp_time(make_trajectory([0, 3, 0])).tolist() == [0, 0, 0]


class TestDivergence:
    def test_distance_of_mean_actions(self):
        #                     approach, success   approach, fail  grip, success  tail, fail
        action_NA = torch.tensor([[1.0, 2], [3, 4], [5, 7], [9, 9], [0, 0], [7, 7]])
        phase_N = torch.tensor([0, 0, 0, 0, 2, 4])
        success_N = torch.tensor([True, True, False, False, True, False])
        # approach: means (2, 3) and (7, 8): sqrt(25 + 25); the other phases lack an outcome
        score_F = divergence(action_NA, phase_N, success_N, phases=5)
        torch.testing.assert_close(score_F, torch.tensor([50**0.5, NAN, NAN, NAN, NAN]), equal_nan=True)

    def test_chunk_action_is_the_mean_over_executed_steps(self):
        action_NLA = torch.arange(8.0).view(1, 4, 2).repeat(2, 1, 1)  # steps (0, 1), (2, 3), (4, 5), (6, 7)
        assert chunk_action(action_NLA, torch.tensor([4, 2])).tolist() == [[3.0, 4.0], [1.0, 2.0]]


class TestKeepProbability:
    # buffers -> p; the means are 1, .5, .3, .15 and never
    buffers = [[0.9, 1.1], [0.5], [0.3, 0.3], [0.2, 0.1], []]

    def test_oracle(self):
        score = collapse(self.buffers, [NAN] * 5)
        keep_F = keep_probability(torch.tensor(score), floor=0.1)
        torch.testing.assert_close(keep_F, torch.tensor([1, 0.5, 0.3, 0.15, 0.1]))

    def test_an_empty_buffer_carries_the_last_score(self):
        score = collapse(self.buffers, [7.0, 7.0, 7.0, 7.0, 2.0])
        assert score[4] == 2.0
        # it may even be the highest: 1/2, .5/2, .3/2, .15/2 below the floor, 2/2
        keep_F = keep_probability(torch.tensor(score), floor=0.1)
        torch.testing.assert_close(keep_F, torch.tensor([0.5, 0.25, 0.15, 0.1, 1.0]))

    def test_floor(self):
        keep_F = keep_probability(torch.tensor([2.0, 0.0, 0.5, NAN, 1.9]), floor=0.3)
        torch.testing.assert_close(keep_F, torch.tensor([1.0, 0.3, 0.3, 0.3, 0.95]))


class TestSelectChunks:
    def test_sorted_distinct_and_no_more_than_there_are(self):
        weight_N = torch.rand(9, generator=torch.Generator().manual_seed(0)) + 0.1
        for budget, expected in ((1, 1), (4, 4), (9, 9), (12, 9)):
            rows = select_chunks(weight_N, budget, seeded_generator(budget))
            assert rows.dtype == torch.int64
            assert len(rows) == expected
            assert rows.tolist() == sorted(set(rows.tolist()))

    def test_weight_zero_is_never_drawn(self):
        weight_N = torch.tensor([0.0, 1.0, 0.0, 1e-6])
        for seed in range(20):
            assert select_chunks(weight_N, 3, seeded_generator(seed)).tolist() == [1, 3]
        assert select_chunks(torch.zeros(3), 2, seeded_generator(0)).tolist() == []

    def test_is_repeatable(self):
        weight_N = torch.ones(40)
        first, again, other = (select_chunks(weight_N, 12, seeded_generator(0, it, 5)).tolist() for it in (1, 1, 2))
        assert first == again != other

    def test_draws_one_after_the_other_in_proportion_to_the_weights(self):
        # weights .6 .3 .1, two draws. P({0,1}) = .6*.3/.4 + .3*.6/.7 = .45 + .2571 = .7071
        #                   P({0,2}) = .6*.1/.4 + .1*.6/.9 = .15 + .0667 = .2167
        #                   P({1,2}) = .3*.1/.7 + .1*.3/.9 = .0429 + .0333 = .0762
        weight_N, generator, draws = torch.tensor([0.6, 0.3, 0.1]), seeded_generator("draws"), 4000
        counts = {(0, 1): 0, (0, 2): 0, (1, 2): 0}
        for _ in range(draws):
            counts[tuple(select_chunks(weight_N, 2, generator).tolist())] += 1
        # 4 standard errors of a share of 4000 draws are at most 4 * sqrt(.25 / 4000) = .032
        assert counts[0, 1] / draws == pytest.approx(0.7071, abs=0.03)
        assert counts[0, 2] / draws == pytest.approx(0.2167, abs=0.03)
        assert counts[1, 2] / draws == pytest.approx(0.0762, abs=0.02)


def test_phase_names():
    assert PHASES == ("approach", "pre_grasp", "active_grip", "release_ramp", "tail")
