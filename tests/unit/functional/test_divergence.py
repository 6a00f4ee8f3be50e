"""Divergence options, with numbers worked out by hand."""

import math

import pytest
import torch

from tests.helpers.make import make_trajectory
from vla_rl.functional.divergence import (
    collapse,
    debiased_divergence,
    divergence,
    equal_weight,
    flat_chunk,
    harmonic_weight,
    mean_divergence,
    visits,
)
from vla_rl.functional.phases import labels, time_quantile
from vla_rl.types import RolloutGroup

NAN = math.nan


def alone(tensor):
    """The sum over one rank."""
    return tensor


@labels("any")
def one_phase(trajectory):
    return torch.zeros(len(trajectory), dtype=torch.int64)


def group(successes, failures):
    """One chunk per trajectory; its first six action dimensions have the value given."""
    outcomes = [(value, True) for value in successes] + [(value, False) for value in failures]
    return RolloutGroup(
        [make_trajectory([0], uid=i, action=value, success=outcome) for i, (value, outcome) in enumerate(outcomes)]
    )


class TestVector:
    def test_flat_keeps_the_order_of_steps(self):
        action_NLA = torch.arange(6.0).view(1, 3, 2)
        assert flat_chunk(action_NLA, torch.tensor([2])).tolist() == [[0.0, 1, 2, 3, 4, 5]]  # predicted, not executed

    def test_flat_sees_differences_that_cancel_in_the_mean(self):
        up, down = make_trajectory([0], uid=0), make_trajectory([0], uid=1, success=False)
        up.actions.action_NLA[0, 0, 0], up.actions.action_NLA[0, 1, 0] = 1.0, -1.0
        groups = [RolloutGroup([up, down])]
        assert float(mean_divergence(groups, alone, label=one_phase)[0, 0]) == 0.0
        flat = mean_divergence(groups, alone, label=one_phase, vector=flat_chunk)
        assert float(flat[0, 0]) == pytest.approx(2**0.5)

    def test_only_executed_steps_count(self):
        up, down = make_trajectory([0], uid=0, last_steps=4), make_trajectory([0], uid=1, success=False)
        up.actions.action_NLA[0, :4, 0], up.actions.action_NLA[0, 4:, 0] = 1.0, -1.0  # the other four never ran
        assert float(mean_divergence([RolloutGroup([up, down])], alone, label=one_phase)[0, 0]) == 1.0


class TestDebias:
    def test_takes_the_noise_of_both_means_away(self):
        # successes 0 and 2 (mean 1, variance 2), failures 5 and 5 (mean 5, variance 0), one dimension
        vector_ND = torch.tensor([[0.0], [2.0], [5.0], [5.0]])
        phase_N, trajectory_N = torch.zeros(4, dtype=torch.int64), torch.arange(4)
        success_N = torch.tensor([True, True, False, False])
        assert divergence(vector_ND, phase_N, success_N, 1).tolist() == [4.0]
        # 16 - 2/2 - 0/2 = 15
        assert debiased_divergence(vector_ND, phase_N, success_N, trajectory_N, 1).tolist() == pytest.approx([15**0.5])

    def test_a_trajectory_is_one_unit_however_many_chunks_it_has(self):
        # the first success has chunks 0 and 4, mean 2: means 2 and 4 (mean 3, variance 2) against 9 and 9
        vector_ND = torch.tensor([[0.0], [4.0], [4.0], [9.0], [9.0]])
        phase_N, trajectory_N = torch.zeros(5, dtype=torch.int64), torch.tensor([0, 0, 1, 2, 3])
        success_N = torch.tensor([True, True, True, False, False])
        debiased = debiased_divergence(vector_ND, phase_N, success_N, trajectory_N, 1)
        assert debiased.tolist() == pytest.approx([35**0.5])  # 36 - 2/2 - 0/2

    def test_never_below_zero_and_unknown_with_a_single_trajectory(self):
        noisy = torch.tensor([[0.0], [2.0], [0.0], [2.0]])
        phase_N, trajectory_N = torch.zeros(4, dtype=torch.int64), torch.arange(4)
        even = torch.tensor([True, True, False, False])
        assert debiased_divergence(noisy, phase_N, even, trajectory_N, 1).tolist() == [0.0]  # 0 - 1 - 1
        single = torch.tensor([True, False, False, False])
        assert debiased_divergence(noisy, phase_N, single, trajectory_N, 1).isnan().all()

    def test_noise_alone_measures_nothing_on_average(self):
        """METHODS: at G = 10 pure noise of +-1/3 around 0 gives plain C_c of about .3 on 7 dimensions."""
        draw = torch.Generator().manual_seed(0)
        success_N, trajectory_N = torch.arange(10) < 5, torch.arange(10)
        plain, debiased = [], []
        for _ in range(300):
            vector_ND = torch.randn(10, 7, generator=draw) * 0.2
            args = (torch.zeros(10, dtype=torch.int64), success_N)
            plain.append(float(divergence(vector_ND, *args, 1)))
            debiased.append(float(debiased_divergence(vector_ND, *args, trajectory_N, 1)) ** 2)
        # E D^2 = 7 * .04 * (1/5 + 1/5) = .112, so D is about .33; the debiased square is 0 before it is clamped
        assert sum(plain) / 300 == pytest.approx(0.33, abs=0.02)
        assert sum(debiased) / 300 < 0.112 / 3


class TestGroupWeights:
    def test_harmonic(self):
        n_plus, n_minus = torch.tensor([5.0, 1.0, 0.0]), torch.tensor([5.0, 9.0, 4.0])
        assert harmonic_weight(n_plus, n_minus).tolist() == pytest.approx([2.5, 0.9, 0.0])
        assert equal_weight(n_plus, n_minus).tolist() == [1.0, 1.0, 1.0]

    def test_weighs_groups_by_what_visits_the_phase(self):
        # gaps 1 (one against one: weight 1/2) and 4 (two against two: weight 1), times sqrt(6)
        groups = [group([1.0], [0.0]), group([4.0, 4.0], [0.0, 0.0])]
        equal = mean_divergence(groups, alone, label=one_phase)
        harmonic = mean_divergence(groups, alone, label=one_phase, group_weight=harmonic_weight)
        assert float(equal[0, 0]) == pytest.approx(2.5 * 6**0.5, rel=1e-6)
        assert float(harmonic[0, 0]) == pytest.approx((0.5 * 1 + 1 * 4) / 1.5 * 6**0.5, rel=1e-6)

    def test_a_trajectory_visits_a_phase_once_however_many_chunks_it_has_there(self):
        # successes: trajectory 0 in phase 0 twice, 1 in both phases; failures: 2 in phase 0 alone
        phase_N, trajectory_N = torch.tensor([0, 0, 0, 1, 0]), torch.tensor([0, 0, 1, 1, 2])
        successes_F, failures_F = visits(phase_N, trajectory_N < 2, trajectory_N, 2)
        assert (successes_F.tolist(), failures_F.tolist()) == ([2, 1], [1, 0])


def test_any_labeller_may_split_the_trajectory():
    trajectories = [
        make_trajectory([0] * 5, uid=0, action=[0.0, 0, 0, 0, 2]),
        make_trajectory([0] * 10, uid=1, action=0.0, success=False),
    ]
    measured = mean_divergence([RolloutGroup(trajectories)], alone, label=time_quantile)
    assert measured.shape == (2, 5)
    assert measured[0].tolist() == pytest.approx([0, 0, 0, 0, 2 * 6**0.5], rel=1e-6)


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [group([1.0, 2.0], [])],  # all success
        [group([], [1.0, 2.0])],  # all failure
    ],
)
def test_without_a_mixed_group_nothing_is_known(groups):
    assert mean_divergence(groups, alone).isnan().all()


def test_collapse_by_sum():
    buffers = [[0.9, 1.1], [0.5], [0.3, 0.3], [0.2, 0.1], []]
    sums = collapse(buffers, [NAN] * 5, math.fsum)
    assert sums[:4] == pytest.approx([2.0, 0.5, 0.6, 0.3])
    assert math.isnan(sums[4])
    # relative to the highest: 1 .25 .3 .15
    assert [s / 2 for s in sums[:4]] == pytest.approx([1, 0.25, 0.3, 0.15])
