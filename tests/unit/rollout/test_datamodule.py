from types import SimpleNamespace

import lightning as L
import pytest
import torch

from tests.helpers.toy import ToyPolicy, ToyPool
from tests.unit.rollout.test_collect import same
from vla_rl.config.schema import EvaluationConfig, GRPOConfig, RolloutConfig
from vla_rl.errors import UserError
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.datamodule import RolloutDataModule


def data_module(
    *, rank: int = 0, world: int = 1, callbacks=(), pool: ToyPool | None = None, seed: int = 1, greedy=0, **grpo
):
    data = RolloutDataModule(
        pool or ToyPool(),
        ToyPolicy(),
        rollout=RolloutConfig(groups=5, group_size=4, temperature=1.0, train_init_states=(0, 20)),
        grpo=GRPOConfig(minibatches=3, **grpo),
        evaluation=EvaluationConfig(sampled_episodes=4, greedy_episodes=greedy),
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
    data.pool.chunk_steps = 8  # 48 steps, 5 at a time
    assert data.max_chunks_of(5) == 10


@pytest.mark.parametrize("chunk_steps", [1, 8])
def test_policy_and_simulators_have_to_agree_on_chunks(chunk_steps):
    pool = ToyPool()
    pool.chunk_steps = chunk_steps
    with pytest.raises(
        UserError, match=f"2 control steps at a time, the simulators expect {chunk_steps}: sim.chunk_st"
    ):
        data_module(pool=pool)


@pytest.mark.parametrize(
    ("states", "name"), [(50, None), (49, "heldout_init_states=.40,50."), (19, "train_init_states=.0,20.")]
)
def test_there_have_to_be_as_many_initial_states(states, name):
    pool = ToyPool()
    pool.init_states = states
    if name is None:
        data_module(pool=pool)
        return
    with pytest.raises(UserError, match=f"^rollout.{name} goes beyond the {states} initial states"):
        data_module(pool=pool)


def test_what_is_planned_and_how_it_is_passed_on():
    assert data_module().planned_trajectories == 20
    data = data_module(downsample=2, epochs=2)
    assert data.planned_trajectories == 10
    epoch = data.train_dataloader()
    assert (epoch.minibatches, epoch.epochs, epoch.seed) == (3, 2, 1)


def test_groups_without_a_spread_are_kept_whole_and_others_without_what_teaches_nothing():
    groups = (kept := data_module(group_filter="keep").train_dataloader()).groups
    assert {group.has_spread for group in groups} == {True, False}
    assert len(kept.training_trajectories) == 20
    groups = (raft := data_module(advantage="raft").train_dataloader()).groups
    taught = [t for group in groups if group.has_spread for t in group.trajectories if t.success]
    assert [t.episode.uid for t in raft.training_trajectories] == [t.episode.uid for t in taught]


def test_an_evaluation_waits_for_rollouts_that_go_on():
    data = data_module()
    waited = []
    data._async = SimpleNamespace(wait=lambda: waited.append(len(data.pool.started)))
    trajectories, _ = data.run(data.heldout("sampled"))
    assert waited == [0] and len(trajectories) == len(data.pool.started) == 4


def test_greedy_pairs_come_again_only_where_the_policy_draws_something():
    data = data_module(greedy=50)
    (low, high), tasks = data.rollout.heldout_init_states, data.pool.tasks
    every_pair = [(task, state) for state in range(low, high) for task in tasks]
    assert [(e.task, e.init_state) for e in data.heldout("greedy").episodes] == every_pair
    assert len(data.heldout("greedy", 5).episodes) == 5
    assert [batch.decoding for batch in data.val_dataloader()] == ["sampled", "greedy"]
    data.policy.greedy_repeats = False
    again = data.heldout("greedy").episodes
    assert [(e.task, e.init_state) for e in again] == (3 * every_pair)[:50]
    assert len({e.seed for e in again}) == 50
    assert len(data.val_dataloader()[1].episodes) == 50


def test_callbacks_are_asked_before_anything_is_written_and_fewer_greedy_episodes_are_said(capsys):
    asked = []

    class Asks(RolloutCallback):
        def check_run(self, data, callbacks):
            asked.append((data, callbacks))

    class Plain(L.Callback):
        def score(self, groups):
            pass

    data, callbacks = data_module(greedy=21), [L.Callback(), Asks()]
    data.check(callbacks)
    assert asked == [(data, callbacks)]
    assert capsys.readouterr().out.startswith("evaluation.greedy_episodes=21: 20 are run, one for each held-out pair")
    with pytest.raises(UserError, match="Plain has score"):
        data_module(greedy=20).check([Plain()])
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"^grpo.loss=nft needs 'matching' .* \(it offers: hidden, score_sq, state\)"):
        data_module(loss="nft").check([])


def test_extras_add_up():
    data = data_module()
    for name in ("hidden", "score_sq"):
        data.request_extra(name, "mask=mine")
    assert data.policy.extras == {"hidden", "score_sq"}


class Evaluating:
    """How often it was entered, and whether it is left."""

    entered, inside = 0, False

    def __enter__(self):
        self.entered, self.inside = self.entered + 1, True

    def __exit__(self, *_):
        self.inside = False


def test_an_evaluation_is_shared_out_and_greedy_ones_are():
    data, evaluating, temperatures, ended = data_module(rank=1, world=2, greedy=3), Evaluating(), [], []
    data.evaluating, data.on_done = lambda: evaluating, ended.append
    act = data.policy.act
    data.policy.act = lambda *given: temperatures.append((given[-1], evaluating.inside)) or act(*given)
    sampled, greedy = data.val_dataloader()
    assert [(b.decoding, len(b.episodes)) for b in (sampled, greedy)] == [("sampled", 4), ("greedy", 3)]
    assert [t.episode.uid for t in data.run(sampled)[0]] == [1, 3]
    assert set(temperatures) == {(1.0, True)}
    temperatures.clear()
    assert [t.episode.uid for t in data.run(greedy)[0]] == [1]
    assert set(temperatures) == {(0.0, True)}
    assert evaluating.entered == 2 and not evaluating.inside
    assert len(ended) == 3


def test_episodes_of_the_rollouts_are_watched():
    data = data_module()
    data.watch = lambda episode: lambda decision: decision.index == 1 + episode.uid % 2
    trajectories = [t for group in data.train_dataloader().groups for t in group.trajectories]
    assert [(len(t), t.stopped) for t in trajectories] == [(1, True), (2, True)] * 10


def ahead(iteration, callbacks=()):
    data = data_module(callbacks=callbacks)
    data.rollout.asynchronous, data.trainer.current_epoch, data.trainer.max_epochs = True, iteration, 2
    return data


def collected(data):
    return [t for group in data.train_dataloader().groups for t in group.trajectories]


def test_an_iteration_is_collected_ahead_and_a_run_that_goes_on_does_it_again():
    data = ahead(0)
    collected(data)
    assert [e.uid for e in data._async.episodes] == list(range(20, 40))
    stored = data.state_dict()
    data._async.wait()
    with torch.no_grad():
        data.policy.head.bias += torch.linspace(0, 2, len(data.policy.head.bias))  # an update
    data.trainer.current_epoch = 1
    found = collected(data)
    assert len(data.pool.started) == 40 and not data._async.episodes  # none after the last iteration
    assert data.state_dict() == {}
    resumed = ahead(1, [OneStep()])  # which has its own mind about windows since
    resumed.policy.load_state_dict(data.policy.state_dict())
    resumed.load_state_dict(stored)
    assert all(same(a, b) for a, b in zip(collected(resumed), found, strict=True))
    assert not resumed._interrupted and not resumed._async._cancelled
    resumed.on_exception(KeyboardInterrupt())
    assert resumed._async._cancelled
