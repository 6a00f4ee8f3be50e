"""Counts of an iteration and of an evaluation, and the rates made of them."""

from types import SimpleNamespace

from tests.helpers.make import make_trajectory
from vla_rl.training.rollout_metrics import HeldoutSuccess, RolloutStatistics
from vla_rl.types import Episode, RolloutGroup


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


def test_success_of_an_evaluation_by_pair():
    episodes = [Episode(uid=i, task=0, init_state=40 + i % 2, seed=i) for i in range(5)]
    own = [make_trajectory([0], success=n in (0, 1, 2)) for n in range(4)]  # the fifth is another rank's
    for trajectory, episode in zip(own, episodes, strict=False):
        trajectory.episode = episode
    heldout = HeldoutSuccess()
    heldout.update(own, episodes)
    assert heldout.compute() == [(2, 3), (1, 2)]  # uids 0 2 4 are state 40, uids 1 3 state 41
    heldout.reset()
    heldout.update(own[:1], episodes[:1])
    assert heldout.compute() == [(1, 1)]
