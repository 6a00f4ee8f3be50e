"""The separate critic on episodes that are written down: what it learns, what it must not know, its fallback."""

import re
from types import SimpleNamespace

import pytest
import torch

from callbacks.critic.separate import WIDEST, SeparateCritic, features, features_of_decision, projected
from callbacks.critic.value_nets import cross_fitted
from tests.helpers.make import make_trajectory
from vla_rl.config.schema import RolloutConfig
from vla_rl.errors import UserError
from vla_rl.functional.gae import explained_variance, gae
from vla_rl.rollout.watch import Watch
from vla_rl.types import Decision, Episode, RolloutGroup


def critic_of(*, iteration=0, max_chunks=6, critic=None, stop_below=None, **options):
    critic = critic or SeparateCritic(**{"steps": 60} | options)
    trainer = SimpleNamespace(
        current_epoch=iteration, world_size=1, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    rollout = RolloutConfig(stop_below=stop_below, stop_after=2, stop_run_on=0.5)
    critic.trainer, critic.data = trainer, SimpleNamespace(seed=3, max_chunks=max_chunks, rollout=rollout)
    return critic


def episodes(count=24, *, chunks=6, told=1.0, first=0, success=lambda i: i % 2 == 0):
    """Groups of four. From the third decision on a feature tells the outcome, by `told`."""
    made = []
    for uid in range(first, first + count):
        t = make_trajectory([0] * chunks, uid=uid, success=success(uid))
        t.proprio_NP = torch.zeros(chunks, 8)
        noise = torch.randn(chunks, 4, generator=torch.Generator().manual_seed(uid))
        noise[2:, 0] = told * (1.0 if t.success else -1.0) + 0.1 * noise[2:, 0]
        t.actions.extras["hidden"] = noise
        made.append(t)
    return [RolloutGroup(made[i : i + 4]) for i in range(0, count, 4)]


def all_of(groups):
    return [t for group in groups for t in group.trajectories]


def test_values_rise_and_fall_when_the_outcome_is_decided():
    groups = episodes()
    critic = critic_of(steps=200)
    critic.set_advantages(groups)
    for success, sign in ((True, 1), (False, -1)):
        members = [t for t in all_of(groups) if t.success == success]
        value_6 = torch.stack([t.actions.extras["value"] for t in members]).mean(0)
        assert (value_6[3:] > 0.9).all() if success else (value_6[3:] < 0.1).all()
        advantage_6 = torch.stack([t.advantage_N for t in members]).mean(0) * sign
        assert advantage_6[1] > 1  # the chunk that leads to the third decision
        assert advantage_6[3:].abs().max() < 0.3  # all was decided
    assert critic._metrics["critic/explained_variance/decision_4"] > 0.9
    assert critic._metrics["critic/explained_variance/decision_1"] < 0.1


def test_advantages_are_gae_of_the_values_over_their_root_mean_square():
    groups = episodes()
    critic_of(lam=0.7, gamma=0.9, clip=1.5).set_advantages(groups)
    raw = []
    for t in all_of(groups):
        reward_N, last_N = torch.zeros(6), torch.tensor([False] * 5 + [True])
        reward_N[-1] = t.reward
        raw.append(gae(reward_N, t.actions.extras["value"], last_N, 0.0, gamma=0.9, lam=0.7))
    scale = torch.cat(raw).square().mean().sqrt() + 1e-5
    assert torch.cat(raw).abs().max() > 1.5 * scale  # the clip acts
    for t, advantage_N in zip(all_of(groups), raw, strict=True):
        torch.testing.assert_close(t.advantage_N, (advantage_N / scale).clamp(-1.5, 1.5).float())


def test_the_values_of_an_episode_do_not_know_its_outcome():
    """Outcomes at random: nets that had seen them would explain them by heart."""
    draw = torch.Generator().manual_seed(0)
    feature_RD = torch.randn(240, 16, generator=draw)
    target_R = (torch.rand(240, generator=draw) < 0.5).float()
    fold_R = torch.arange(240) % 3
    options = {"folds": 3, "nets": 2, "steps": 400}
    apart, _ = cross_fitted(feature_RD, target_R, fold_R, **options, generator=torch.Generator().manual_seed(1))
    assert explained_variance(apart, target_R) < 0.1
    twice, folds = feature_RD.repeat(2, 1), torch.cat([torch.full((240,), -1), fold_R])
    seen, _ = cross_fitted(twice, target_R.repeat(2), folds, **options, generator=torch.Generator().manual_seed(1))
    assert explained_variance(seen, target_R) > 0.4  # the same decisions, as an earlier iteration's


def test_it_learns_from_the_last_iterations():
    first, second = episodes(12), episodes(12, first=100, success=lambda i: True)
    critic = critic_of(iterations=1, steps=200)
    critic.set_advantages(first)
    assert [e.uid for e in critic.earlier[0]] == list(range(12)) and len(critic.earlier) == 1
    critic_of(iteration=1, critic=critic).set_advantages(second)  # all succeed, and the critic knows what failing is
    assert [e.uid for e in critic.earlier[0]] == list(range(100, 112)) and len(critic.earlier) == 1
    value_6 = torch.stack([t.actions.extras["value"] for t in all_of(second)]).mean(0)
    assert value_6[3] > 0.9 and value_6[0] < 0.9  # and is not sure at the first decision


def test_the_order_of_groups_changes_nothing():
    there, back = episodes(), episodes()[::-1]
    critic_of().set_advantages(there)
    critic_of().set_advantages(back)
    of_uid = {t.episode.uid: t for t in all_of(back)}
    for t in all_of(there):
        assert torch.equal(t.advantage_N, of_uid[t.episode.uid].advantage_N)
    again = episodes()
    critic_of(iteration=1).set_advantages(again)  # other draws
    assert not torch.equal(again[0].trajectories[0].advantage_N, there[0].trajectories[0].advantage_N)


def test_a_critic_that_goes_on_from_its_state_is_the_same():
    whole = critic_of()
    whole.set_advantages(episodes())
    resumed = critic_of(iteration=1)
    resumed.load_state_dict(whole.state_dict())
    there, here = episodes(first=100), episodes(first=100)
    critic_of(iteration=1, critic=whole).set_advantages(there)
    resumed.set_advantages(here)
    anew = episodes(first=100)
    critic_of(iteration=1).set_advantages(anew)
    for a, b, c in zip(all_of(there), all_of(here), all_of(anew), strict=True):
        assert torch.equal(a.advantage_N, b.advantage_N) and not torch.equal(a.advantage_N, c.advantage_N)


@pytest.mark.parametrize(
    ("groups", "value", "advantage"),
    [
        (lambda: episodes(8, success=lambda i: True), 1.0, {True: 0.0}),
        (lambda: episodes(8, success=lambda i: False), 0.0, {False: 0.0}),
        (lambda: [RolloutGroup(all_of(episodes(4))[:2])], 0.5, {True: 1.0, False: -1.0}),
        # one success among seven failures: rewards minus 1/8 are 7/8 and -1/8, their root mean square sqrt(7)/8
        (lambda: episodes(8, success=lambda i: i == 0), 0.125, {True: 2.645751, False: -0.377964}),
    ],
    ids=["all succeed", "all fail", "two episodes", "one success"],
)
def test_with_nothing_to_learn_from_it_is_the_reward_minus_the_mean(groups, value, advantage):
    groups = groups()
    with pytest.warns(UserWarning) as said:
        critic_of().set_advantages(groups)
    line = f"the critic has nothing to learn from .* minus their mean {value:.3g}"
    assert [warning for warning in said if re.search(line, str(warning.message))]
    for t in all_of(groups):
        assert t.actions.extras["value"].tolist() == [value] * 6
        assert t.advantage_N.tolist() == pytest.approx([advantage[t.success]] * 6, abs=1e-4)


def test_episodes_of_one_decision():
    groups = episodes(12, chunks=1)
    critic_of(max_chunks=1).set_advantages(groups)
    assert all(t.advantage_N.isfinite().all() and len(t.advantage_N) == 1 for t in all_of(groups))
    assert all((t.advantage_N > 0) == t.success for t in all_of(groups))


def test_shaped_rewards_are_expected_in_their_own_units():
    groups = episodes()
    for t in all_of(groups):
        t.reward = 2.0 if t.success else -1.0
    critic = critic_of(steps=200)
    critic.set_advantages(groups)
    assert critic._metrics["critic/loss"] < 0.6  # log 2 for who knows nothing
    for success in (True, False):
        values = [float(t.actions.extras["value"][4]) for t in all_of(groups) if t.success == success]
        mean = sum(values) / len(values)
        assert mean > 1.7 if success else mean < -0.7


def test_features_of_a_decision():
    t = make_trajectory([0, 4, 8], uid=2, last_steps=8)
    feature_ND = features(t, longest=5, seed=0)
    assert feature_ND.shape == (3, 4 + 8 + 3)
    assert feature_ND[:, -3:].tolist() == [[0.0, 0.0, 0.0], [0.25, 0.0625, 0.0], [0.5, 0.25, 0.5]]
    assert torch.equal(feature_ND[:, :4], t.actions.extras["hidden"])
    assert torch.equal(feature_ND[:, 4:12], t.proprio_NP)


def test_the_window_is_seen_where_a_reward_plans_it():
    t = make_trajectory([0, 4, 8], uid=2)
    without = features(t, longest=5, seed=0)
    t.episode.window = 2
    feature_ND = features(t, longest=5, seed=0)
    assert torch.equal(feature_ND[:, :-1], without)
    assert feature_ND[:, -1].tolist() == [0.25] * 3  # 2 of 8 control steps


def test_what_a_success_earns_depends_on_the_window():
    """Without it the last decision of a success would be worth 1.5 whatever it earns: punished for one window."""
    groups = episodes(96)
    for t in all_of(groups):
        t.episode.window = 4 if t.episode.uid % 4 < 2 else 8
        t.reward = t.success * (1.0 if t.episode.window == 4 else 2.0)
    critic_of(steps=350).set_advantages(groups)
    for window, reward in ((4, 1.0), (8, 2.0)):
        successes = [t for t in all_of(groups) if t.success and t.episode.window == window]
        values = [float(t.actions.extras["value"][4]) for t in successes]
        assert sum(values) / len(values) == pytest.approx(reward, abs=0.2)


def test_what_was_earned_under_another_reward_is_forgotten():
    critic = critic_of(steps=20)
    critic.set_advantages(episodes())
    assert len(critic.earlier) == 1 and critic._fitted
    critic.forget_rewards()
    assert critic.earlier == [] and critic._fitted is None


def decisions(t):
    closing = [0.0, *(t.gripper_closed_NL.sum(1) / t.executed_N).tolist()]
    return [
        Decision(n, proprio_P, t.actions.rows(slice(n, n + 1)), closing[n], t.episode.window)
        for n, proprio_P in enumerate(t.proprio_NP)
    ]


def test_features_of_a_decision_that_is_not_executed_yet_are_those_of_the_trajectory():
    t = make_trajectory([3, 4, 8], uid=2)
    for window in (None, 2):
        t.episode.window = window
        rows = [features_of_decision(decision, longest=5, seed=0) for decision in decisions(t)]
        assert torch.equal(torch.cat(rows), features(t, longest=5, seed=0))


def test_lost_episodes_are_those_that_the_last_nets_expect_to_fail():
    critic = critic_of(steps=200, stop_below=0.2)
    assert critic._watch(Episode(uid=99, task=0, init_state=0, seed=0)) is None  # nothing was learnt yet
    critic.set_advantages(episodes())
    again = critic_of(iteration=1, stop_below=0.2)
    again.load_state_dict(critic.state_dict())
    ended = {}
    for t in all_of(episodes(first=100)):
        watch = critic._watch(t.episode)
        ends = [watch(decision) for decision in decisions(t)]
        resumed = again._watch(t.episode)
        assert [resumed(decision) for decision in decisions(t)] == ends
        assert watch.lost_at in ((None,) if t.success else (3, 4))  # the third decision tells, two in a row are low
        ended[t.episode.uid] = any(ends)
    failures = [uid for uid in ended if uid % 2]
    assert {uid for uid in ended if ended[uid]} < set(failures)
    assert 3 <= sum(ended.values()) <= 9  # half of 12 run on


def test_how_many_were_ended_and_how_many_wrongly():
    critic = critic_of(stop_below=0.2)
    for uid, (runs_on, lost_at, success) in enumerate(
        [(True, 3, True), (True, 3, False), (False, 2, False), (True, None, True), (False, None, False)]
    ):
        critic._watches[uid] = Watch(lambda _: 0.0, 0.2, 2, runs_on, lost_at=lost_at)
        t = make_trajectory([0, 0], uid=uid, success=success)
        t.stopped = lost_at is not None and not runs_on
        metrics = critic._lost([t])
        assert metrics["rollout/stopped"] == float(t.stopped)
        assert metrics["rollout/stopped_wrongly"] == (1.0 if uid == 0 else 0.5)  # since the run began
    assert critic._watches == {}


def test_wide_hidden_states_are_projected_and_keep_their_distances():
    hidden_ND = torch.randn(6, 4096, generator=torch.Generator().manual_seed(0))
    narrow = projected(hidden_ND, seed=1)
    assert narrow.shape == (6, WIDEST) and torch.equal(narrow, projected(hidden_ND, seed=1))
    ratio = torch.pdist(narrow) / torch.pdist(hidden_ND)
    assert (ratio - 1).abs().max() < 0.15  # a standard error is 1 / sqrt(2 * 512) = .03
    assert projected(hidden_ND[:, :WIDEST], seed=1).equal(hidden_ND[:, :WIDEST])  # as they are


def test_variance_is_explained_where_both_outcomes_last_long_enough():
    """12 successes and 12 failures; from decision 5 on three successes are left, which say nothing."""
    groups = episodes()
    for i, t in enumerate(t for t in all_of(groups) if t.success):
        if i >= 3:
            shorter(t, 4)
    critic = critic_of()
    critic.set_advantages(groups)
    said = {name for name in critic._metrics if name.startswith("critic/explained_variance/")}
    assert said == {f"critic/explained_variance/decision_{n}" for n in (1, 2, 3, 4)}


def shorter(t, chunks):
    t.proprio_NP, t.executed_N = t.proprio_NP[:chunks], t.executed_N[:chunks]
    t.actions, t.gripper_closed_NL = t.actions.rows(slice(chunks)), t.gripper_closed_NL[:chunks]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"lam": 1.5}, r"critic.lam must be a number >= 0 and <= 1, got 1.5 \(critic.lam=0.5\)"),
        ({"clip": 0}, r"critic.clip must be a number > 0, got 0 \(critic.clip=3.0\)"),
        ({"folds": 1}, r"critic.folds must be an integer >= 2, got 1 \(critic.folds=3\)"),
        ({"normalise": "sum"}, "scale, centre"),
    ],
)
def test_options_out_of_range_are_refused(options, line):
    with pytest.raises(UserError, match=line):
        SeparateCritic(**options)
