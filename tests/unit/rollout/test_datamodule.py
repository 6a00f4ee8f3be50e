from types import SimpleNamespace

import pytest
import torch

from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.config.schema import EvaluationConfig, GRPOConfig, RolloutConfig
from vla_rl.errors import UserError
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.datamodule import RolloutDataModule


def data_module(*, rank: int = 0, world: int = 1, callbacks=(), pool: ToyPool | None = None, seed: int = 1):
    data = RolloutDataModule(
        pool or ToyPool(),
        ToyPolicy(),
        rollout=RolloutConfig(groups=5, group_size=4, temperature=1.0, train_init_states=(0, 20)),
        grpo=GRPOConfig(minibatches=3),
        evaluation=EvaluationConfig(sampled_episodes=4, greedy_episodes=0),
        seed=seed,
    )
    data.trainer = SimpleNamespace(current_epoch=0, global_rank=rank, world_size=world, callbacks=list(callbacks))
    return data


def test_an_iteration_is_collected_once_and_only_when_used():
    pool = ToyPool()
    epoch = data_module(pool=pool).train_dataloader()
    assert len(epoch) == 3
    assert not pool.started
    for _ in range(2):
        assert len(list(epoch)) == 3
    assert len(pool.started) == 20


def test_groups_share_task_and_initial_state_but_not_noise():
    for group in data_module().train_dataloader().groups:
        assert len({(t.episode.task, t.episode.init_state) for t in group.trajectories}) == 1
        assert len({t.episode.seed for t in group.trajectories}) == 4


def test_the_plan_depends_on_seed_and_iteration_alone():
    key = lambda plan: [(e.uid, e.task, e.init_state, e.seed) for e in plan]  # noqa: E731
    assert key(data_module().plan(3)) == key(data_module(rank=1, world=2).plan(3))
    assert key(data_module().plan(3)) != key(data_module().plan(4))
    assert key(data_module().plan(3)) != key(data_module(seed=2).plan(3))
    assert {e.task for e in data_module().plan(0)} == {0, 1}


def test_ranks_share_out_whole_groups():
    uids = [
        [t.episode.uid for g in data_module(rank=r, world=2).train_dataloader().groups for t in g.trajectories]
        for r in (0, 1)
    ]
    assert len(uids[0]) == 12
    assert len(uids[1]) == 8
    assert sorted(uids[0] + uids[1]) == list(range(20))


def test_batches_hold_each_useful_trajectory_once_and_no_other():
    epoch = data_module().train_dataloader()
    useful = {t.episode.uid for g in epoch.groups if g.has_spread for t in g.trajectories}
    useless = {t.episode.uid for g in epoch.groups if not g.has_spread for t in g.trajectories}
    assert useful
    assert useless
    seen = [t.episode.uid for batch in epoch for t in batch.trajectories]
    assert sorted(seen) == sorted(useful)
    for group in epoch.groups:
        advantages = [t.advantage for t in group.trajectories]
        assert sum(advantages) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "high"])
def test_a_reward_that_is_no_number_is_refused_by_the_name_of_who_gave_it(value):
    class Mine(RolloutCallback):
        def score(self, groups):
            groups[2].trajectories[1].reward = value

    message = rf"^Mine.score set the reward of an episode \(task \d, initial state \d+\) to {value}, which is no finite"
    with pytest.raises(UserError, match=message):
        _ = data_module(callbacks=[Mine()]).train_dataloader().groups


class AllEqual(RolloutCallback):
    """A reward without any spread: nothing can be learnt from the iteration."""

    def score(self, groups):
        for group in groups:
            for trajectory in group.trajectories:
                trajectory.reward = 1.0


def test_an_iteration_without_spread_still_has_all_its_batches():
    batches = list(data_module(callbacks=[AllEqual()]).train_dataloader())
    assert len(batches) == 3
    assert all(len(batch) == 1 and not batch.token_mask_NLA.any() for batch in batches)


class OneStep(RolloutCallback):
    def plan_rollouts(self, episodes):
        for episode in episodes:
            episode.window = 1


def test_callbacks_may_plan_and_score():
    groups = data_module(callbacks=[OneStep(), AllEqual()]).train_dataloader().groups
    trajectories = [t for group in groups for t in group.trajectories]
    assert all(t.executed_N.max() == 1 and t.reward == 1.0 and t.advantage == 0.0 for t in trajectories)


class Opposite(RolloutCallback):
    def set_advantages(self, groups):
        for group in groups:
            for trajectory in group.trajectories:
                trajectory.set_advantage(-trajectory.advantage)


def test_callbacks_may_replace_advantages():
    plain = data_module().train_dataloader().training_trajectories
    replaced = data_module(callbacks=[Opposite()]).train_dataloader().training_trajectories
    assert [t.advantage for t in replaced] == [-t.advantage for t in plain]
    assert any(t.advantage for t in plain)


def test_heldout_states_are_never_trained_on():
    data = data_module()
    (batch,) = data.val_dataloader()  # no greedy episodes were asked for
    assert batch.decoding == "sampled"
    trained = {e.init_state for iteration in range(50) for e in data.plan(iteration)}
    assert trained == set(range(20))
    assert not trained & {e.init_state for e in batch.episodes}


def test_a_batch_flattens_trajectories_in_order():
    batch = next(iter(data_module().train_dataloader()))
    lengths = [len(t) for t in batch.trajectories]
    assert len(batch) == sum(lengths)
    assert batch.chunk_N.tolist() == [k for n in lengths for k in range(n)]
    for i, trajectory in enumerate(batch.trajectories):
        rows = batch.trajectory_N == i
        assert torch.equal(batch.actions.drawn["token"][rows], trajectory.actions.drawn["token"])
        assert torch.equal(batch.token_mask_NLA[rows].any(-1), trajectory.executed_NL)


def test_policy_and_simulators_have_to_agree_on_images():
    pool = ToyPool()
    pool.images = 2
    with pytest.raises(UserError, match="reads 1 images per decision, the simulators render 2: sim.wrist_camera=false"):
        data_module(pool=pool)


def test_a_narrower_window_makes_more_decisions():
    data = data_module()  # episodes of 12 control steps, 2 per chunk
    assert [data.max_chunks_of(window) for window in (None, 2, 1)] == [6, 6, 12]
