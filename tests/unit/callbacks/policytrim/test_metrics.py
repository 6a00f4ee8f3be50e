"""Rewards and an iteration's numbers, worked out by hand."""

import math

import pytest

from callbacks.policytrim.metrics import iteration_metrics, window_counts
from callbacks.policytrim.stages import Extension, Reduction
from callbacks.policytrim.step_baseline import StepBaseline
from tests.helpers.make import make_trajectory
from vla_rl.functional.rewards import Preset
from vla_rl.types import RolloutGroup


def episode(chunks, *, task, success=True, reward=0.0, advantage=0.0, last_steps=8, window=None):
    trajectory = make_trajectory([0] * chunks, success=success, last_steps=last_steps, advantage=advantage)
    trajectory.reward, trajectory.episode.task, trajectory.episode.window = reward, task, window
    return trajectory


def groups():
    """12 steps and a failure of 24, of task 3; 8 and 24 steps of task 5."""
    first = [episode(2, task=3, reward=1.4, last_steps=4), episode(3, task=3, success=False)]
    second = [
        episode(1, task=5, reward=1.2, advantage=0.5, window=4),
        episode(3, task=5, reward=1.0, advantage=-0.5),
    ]
    return [RolloutGroup(first), RolloutGroup(second)]


def baseline():
    measured = StepBaseline(4, 1.3)
    measured.steps, measured.calls = {3: 48.0, 5: 32.0}, {3: 4.0, 5: 2.5}
    return measured


def reduction(**values):
    published = {"step_coef": 0.5, "penalty": 0.2, "sigma_floor": "clamp"}
    return Reduction(8, Preset(**(published | values)), 16.0, baseline())


STAGE_1 = {
    "window": 28 / 4,
    "reward": 3.6 / 4,
    "all_success_groups": 1 / 2,
    "step_drift": -4.0,  # of the second group: .5 and -.5 with 8 steps less and more than the mean
    "calls": 6 / 3,
    "call_speedup": (4 + 2.5 + 2.5) / 6,
}
PENALTIES = 2 * 0.2 * math.tanh(8 / 16)  # in all, both in the second group
STAGE_2 = STAGE_1 | {
    "reward_without_penalty": (3.6 + PENALTIES) / 4,
    "step_reward": (36 / 48 + 24 / 32 + 8 / 32) / 3,  # of the successes
    "penalty": PENALTIES / 3,
}


@pytest.mark.parametrize(("stage", "expected"), [(None, STAGE_1), (reduction(), STAGE_2)])
def test_means_over_an_iteration(stage, expected):
    assert iteration_metrics(groups(), baseline(), stage, lambda sums: sums) == pytest.approx(expected)


def test_sums_are_reduced_not_means():
    """Two ranks, one with each group."""
    parts = []
    for group in groups():
        iteration_metrics([group], baseline(), reduction(), lambda sums: parts.append(sums) or sums)
    found = iteration_metrics(groups()[:1], baseline(), reduction(), lambda _: parts[0] + parts[1])
    assert found == pytest.approx(STAGE_2)


def test_what_nothing_can_be_said_of_is_left_out():
    failures = [RolloutGroup([episode(3, task=3, success=False)] * 2)]
    found = iteration_metrics(failures, baseline(), reduction(), lambda sums: sums)
    assert found == {"window": 8, "reward": 0, "all_success_groups": 0, "reward_without_penalty": 0}


def test_successes_and_episodes_of_each_window():
    assert window_counts(groups(), [4, 8]).tolist() == [[1, 2], [1, 3]]


def test_rewards_of_stage_1():
    """Ratios 1/2 and 1, beta .5."""
    group = RolloutGroup([episode(1, task=5, window=4), episode(1, task=5), episode(1, task=5, success=False)])
    stage = Extension({4: 0.5, 8: 1.0}, 0.5, "group", "balanced")
    assert stage.reward(group).tolist() == [1.25, 1.5, 0.0]
    assert stage.advantage(group) is None
    factorised = Extension({4: 0.5, 8: 1.0}, 0.5, "factorised", "balanced").advantage(group)
    assert factorised.tolist() == [1.25 / 2, 1.5 / 2, -1.5]  # of the others one of two succeeds, or both


@pytest.mark.parametrize(
    ("values", "penalty"),
    [({}, 0.2 * math.tanh(0.5)), ({"penalty": 0.4}, 0.4 * math.tanh(0.5)), ({"sigma_floor": "gate"}, 0.0)],
)
def test_rewards_of_stage_2(values, penalty):
    """Of 32 steps 24 and 8 are saved; 8 steps from the mean, and so sigma, against a floor of 16."""
    stage, group = reduction(**values), groups()[1]
    for trajectory in group.trajectories:
        trajectory.reward = 0.0  # what was earned before changes nothing
    assert stage.reward(group).tolist() == pytest.approx([1 + 0.5 * 0.75 - penalty, 1 + 0.5 * 0.25 - penalty])
    assert stage.advantage(group) is None
