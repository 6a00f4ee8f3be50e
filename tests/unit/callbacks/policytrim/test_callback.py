"""When which stage of PolicyTrim is on, and what it does to advantages; trajectories are written down."""

from types import SimpleNamespace

import pytest
import torch

from callbacks.policytrim.callback import PolicyTrim
from tests.helpers.make import make_trajectory
from tests.helpers.toy import ToyPolicy
from vla_rl.errors import UserError
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.types import Episode, RolloutGroup


def checked(seed=0, **options):
    """Windows of 1 and 2 of the toy's 2 control steps."""
    trim = PolicyTrim(ratios=[0.5, 1.0], **options)
    trim.check_run(SimpleNamespace(rollout=SimpleNamespace(group_size=4), policy=ToyPolicy(), seed=seed), [])
    return trim


def planned(trim, groups=6, size=4):
    episodes = [Episode(uid=i, task=0, init_state=0, seed=0, group=i // size) for i in range(groups * size)]
    trim.plan_rollouts(episodes)
    windows = [e.window for e in episodes]
    return [windows[i : i + size] for i in range(0, len(windows), size)]


class Told(RolloutCallback):
    told = 0

    def forget_rewards(self):
        self.told += 1


class TestStages:
    def test_windows_are_drawn_for_each_group_by_the_runs_seed(self):
        plans = planned(checked(extend_iterations=1))
        assert all(sorted(plan) == [1, 1, 2, 2] for plan in plans)
        assert len(set(map(tuple, plans))) > 1
        assert planned(checked(extend_iterations=1)) == plans != planned(checked(extend_iterations=1, seed=1))
        assert planned(checked()) == [[2] * 4] * 6  # stage 2: the widest

    @pytest.mark.parametrize(
        ("options", "stages"),
        [
            ({"extend_iterations": 2, "switch_margin": None}, [False, True, True]),
            ({"extend_iterations": 3, "switch_margin": None}, [False, False, True]),
            ({"extend_iterations": 9, "switch_margin": 1.0, "switch_iterations": 2}, [False, True, True]),
            ({"extend_iterations": 9, "switch_margin": 0.1, "switch_iterations": 1}, [False, False, False]),
        ],
    )
    def test_when_the_second_begins(self, options, stages):
        """Both windows run twice an iteration: the narrow one always succeeds, the wide one once."""
        trim, other = checked(**options), Told()
        found = []
        for _ in stages:
            trim.counts = [*trim.counts, [[2.0, 1.0], [2.0, 2.0]]]
            trim.on_train_epoch_end(SimpleNamespace(is_global_zero=False, callbacks=[trim, other]), None)
            found.append(trim.trimming)
        assert found == stages
        assert other.told == any(stages)  # once

    def test_windows_are_compared_over_iterations_together(self):
        trim = PolicyTrim(extend_iterations=9, switch_iterations=2, switch_margin=0.0)
        trim.counts = [[[9.0, 1.0], [10.0, 10.0]]] * 2
        assert not trim._caught_up()
        trim.counts = [[[9.0, 1.0], [10.0, 10.0]], [[1.0, 9.0], [10.0, 10.0]]]  # 10 and 10
        assert trim._caught_up()


def test_what_an_iteration_logs():
    """Two episodes of window 1 fail; of two of window 2 one succeeds."""
    trim, logged = checked(kl_coef=0.5, switch_iterations=1), {}
    trim.baseline.steps, trim.baseline.calls = {0: 10.0}, {0: 3.0}
    trajectories = [make_trajectory([0], uid=i, success=i == 3) for i in range(4)]
    for trajectory, window in zip(trajectories, (1, 1, 2, 2), strict=True):
        trajectory.episode.window = window
    trainer = SimpleNamespace(train_dataloader=SimpleNamespace(groups=[RolloutGroup(trajectories)]), world_size=1)
    trim._kl = [0.1, 0.3]
    for _ in range(2):
        trim.on_train_epoch_start(trainer, SimpleNamespace(log=lambda name, value, **_: logged.update({name: value})))
    assert trim.counts == [[[0, 1], [2, 2]]]  # of the last iteration
    expected = {"stage": 2, "kl": 0.2, "success/1": 0, "success/2": 0.5, "window": 1.5}
    assert {name: logged[f"policytrim/{name}"] for name in expected} == pytest.approx(expected)


def test_the_first_stage_holds_nothing_back(monkeypatch):
    trim = checked(kl_coef=0.5, extend_iterations=1)
    trajectories = [make_trajectory([0], uid=i, advantage=1.0) for i in range(4)]
    monkeypatch.setattr(trim.reference, "divergence", lambda *_, **__: [0.1, 0.5, 0.2, 0.2])
    for trajectory in trajectories:
        trajectory.episode.window = 1
    trim.set_advantages([RolloutGroup(trajectories)])
    assert [t.advantage for t in trajectories] == [1.0] * 4


def test_divergences_are_compared_within_a_group(monkeypatch):
    """Means .2 and .6 of the two groups, coefficient .5."""
    trim = PolicyTrim(kl_coef=0.5)
    trim.data = SimpleNamespace(rollout=SimpleNamespace(group_size=2))
    monkeypatch.setattr(trim.reference, "divergence", lambda *_, **__: [0.1, 0.3, 0.4, 0.8])
    members = [make_trajectory([0], uid=i, advantage=1.0) for i in range(4)]
    trim._hold_back([RolloutGroup(members[:2]), RolloutGroup(members[2:])])
    assert [t.advantage for t in members] == pytest.approx([1.05, 0.95, 1.1, 0.9], abs=1e-6)


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        (([1.0, 1.0, 1.0], [-1.0, -1.0]), ([1.1, 1.1, 1.1], [-1.1, -1.1])),  # an episode has one advantage
        (([3.0, 0.0, -1.0], [-2.0, 0.5]), ([3.1, 0.1, -0.9], [-2.1, 0.4])),  # a critic gave each chunk its own
    ],
)
def test_the_divergence_holds_back_all_chunks_of_an_episode_alike(monkeypatch, advantages, expected):
    """Divergences .1 and .5, mean .3, coefficient .5: +.1 for the first episode, -.1 for the second."""
    trim = PolicyTrim(kl_coef=0.5)
    trim.data = SimpleNamespace(rollout=SimpleNamespace(group_size=2))
    monkeypatch.setattr(trim.reference, "divergence", lambda data, trajectories, filler: [0.1, 0.5])
    members = [make_trajectory([0] * len(a), uid=uid, success=uid == 0) for uid, a in enumerate(advantages)]
    for trajectory, own in zip(members, advantages, strict=True):
        trajectory.advantage_N = torch.tensor(own)
    trim._hold_back([RolloutGroup(members)])
    for trajectory, own in zip(members, expected, strict=True):
        assert trajectory.advantage_N.tolist() == pytest.approx(own, abs=1e-6)


def test_the_divergence_acts_wherever_an_advantage_does(monkeypatch):
    """Of three groups of equal rewards a critic has given advantages to two: their episodes are held back."""
    trim = PolicyTrim(kl_coef=0.5)
    trim.data = SimpleNamespace(rollout=SimpleNamespace(group_size=2))
    monkeypatch.setattr(trim.reference, "divergence", lambda data, trajectories, filler: [0.1, 0.5, 0.2, 0.2])
    groups = [RolloutGroup([make_trajectory([0], uid=2 * g + i) for i in (0, 1)]) for g in range(3)]
    for g, advantage in ((0, 1.0), (2, 2.0)):
        groups[g].trajectories[1].set_advantage(advantage)
    trim._hold_back(groups)
    found = [t.advantage for group in groups for t in group.trajectories]
    assert found == pytest.approx([0.1, 0.9, 0.0, 0.0, 0.0, 2.0], abs=1e-6)


def test_groups_of_one_have_no_divergence_to_compare():
    groups_of_one = SimpleNamespace(rollout=SimpleNamespace(group_size=1), policy=ToyPolicy())
    with pytest.raises(UserError, match=r"reward.kl_coef=0.5 .* rollout.group_size=8, or reward.kl_coef=0$"):
        PolicyTrim(kl_coef=0.5).check_run(groups_of_one, [])
    PolicyTrim(kl_coef=0.0).check_run(groups_of_one, [])
