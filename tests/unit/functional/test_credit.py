"""Credit of chunks: worked out by hand."""

import math

import pytest
import torch

from tests.helpers.make import make_trajectory
from vla_rl.functional.credit import credit, mean_credit, undecided
from vla_rl.functional.phases import labels
from vla_rl.types import RolloutGroup


def rated(value, *, uid=0, success=True):
    trajectory = make_trajectory([0] * len(value), uid=uid, success=success)
    trajectory.actions.extras["value"] = torch.tensor(value)
    return trajectory


def test_credit_is_the_squared_change_of_what_was_expected():
    # .5 -> .7 -> .1 -> failure
    assert credit(torch.tensor([0.5, 0.7, 0.1]), 0.0).tolist() == pytest.approx([0.04, 0.36, 0.01])


def test_the_last_chunk_is_compared_with_what_the_episode_earned():
    assert credit(torch.tensor([0.25]), 1.0).tolist() == [0.5625]


def test_an_outcome_is_open_strictly_between_a_tenth_and_nine_tenths():
    value_N = torch.tensor([0.05, 0.1, 0.11, 0.89, 0.9, 0.95])
    assert undecided(value_N).tolist() == [False, False, True, True, False, False]


@labels("first", "second", "never")
def halves(trajectory):
    return torch.arange(len(trajectory)) * 2 // len(trajectory)


def test_mean_credit_of_phases_counts_chunks_of_all_groups_and_ranks():
    groups = [
        RolloutGroup([rated([0.5, 0.7, 0.1, 0.1], success=False)]),  # .04 .36 | 0 .01
        RolloutGroup([rated([0.5, 1.0], uid=1)]),  # .25 | 0
    ]
    mean_F = mean_credit(groups, lambda sums: sums, halves)
    assert mean_F[:2].tolist() == pytest.approx([0.65 / 3, 0.01 / 3])
    assert math.isnan(mean_F[2])

    def other_rank_too(sums_2F):  # it has one chunk of credit .35 in the first phase
        return sums_2F + torch.tensor([[0.35, 0.0, 0.0], [1.0, 0.0, 0.0]])

    assert mean_credit(groups, other_rank_too, halves)[0].item() == pytest.approx(1.0 / 4)
