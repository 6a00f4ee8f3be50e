"""Counts of an iteration and of an evaluation, and the rates made of them."""

from types import SimpleNamespace

from tests.helpers.make import make_trajectory
from vla_rl.training.rollout_metrics import HeldoutSuccess, RolloutStatistics
from vla_rl.types import RolloutGroup


def test_rates_of_an_iteration():
    mixed = RolloutGroup(
        [make_trajectory([0, 8], success=True, last_steps=3), make_trajectory([0, 0, 0], success=False)]
    )
    equal = RolloutGroup([make_trajectory([0], success=False), make_trajectory([8], success=False)])
    statistics = RolloutStatistics()
    statistics.update(SimpleNamespace(groups=[mixed, equal], training_trajectories=mixed.trajectories))
    assert statistics.compute() == {
        "rollout/groups": 2,
        "rollout/success": 0.25,
        "rollout/groups_with_spread": 0.5,
        "rollout/steps": (11 + 24 + 8 + 8) / 4,
        "rollout/steps_of_successes": 11,
        "trained": 2,
    }


def test_without_a_success_there_are_no_steps_of_one():
    statistics = RolloutStatistics()
    group = RolloutGroup([make_trajectory([0], success=False)])
    statistics.update(SimpleNamespace(groups=[group], training_trajectories=[]))
    assert "rollout/steps_of_successes" not in statistics.compute()


def test_success_of_an_evaluation():
    heldout = HeldoutSuccess()
    heldout.update([make_trajectory([0], success=n < 3) for n in range(5)])
    assert heldout.compute().tolist() == [3, 5]
