"""The training step under a real Trainer, on the toy world."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.helpers.toy import ToyPolicy, ToyPool
from tests.helpers.toy_training import fit
from vla_rl.errors import RunError
from vla_rl.rollout.callback import RolloutCallback


def test_one_collection_per_iteration(tmp_path):
    pool = ToyPool()
    fit(tmp_path, iterations=3, pool=pool, epochs=2)
    assert len(pool.started) == 3 * 16
    assert [e.uid for e in pool.started] == list(range(48))


def test_rollout_and_update_agree_before_anything_is_learnt(tmp_path):
    _, _, _, recorder = fit(tmp_path)
    # the toy scores rows in batches but samples one by one: rounding of float32 log-probabilities, no more
    assert all(m["train/first_log_ratio_abs"] < 1e-6 for m in recorder.metrics)
    assert recorder.metrics[0]["train/log_ratio_abs"] > 1e-4  # the second step has something to differ by


def test_the_gradient_does_not_depend_on_micro_batches(tmp_path):
    _, _, _, one = fit(tmp_path, iterations=1, micro_rows=1000)
    _, _, _, many = fit(tmp_path, iterations=1, micro_rows=3)
    assert len(one.gradients) == len(many.gradients) == 2
    assert one.gradients[0].norm() > 1e-3
    torch.testing.assert_close(many.gradients[0], one.gradients[0], atol=1e-7, rtol=1e-5)  # order of a float32 sum


def test_the_gradient_is_the_policy_gradient(tmp_path):
    """At ratio 1 and without entropy bonus: -sum_t w_t A grad log pi(t), w = 1/(tokens of trajectory)/trajectories."""

    class Keep(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                self.batch = batch

    keep = Keep()
    _, _, _, recorder = fit(tmp_path, iterations=1, callbacks=[keep], entropy_coef=0.0)
    policy, batch = ToyPolicy(), keep.batch
    logprob, _ = policy.log_prob(batch, 1.0)
    loss = 0.0
    for i, trajectory in enumerate(batch.trajectories):
        own = batch.trajectory_N == i
        loss -= trajectory.advantage * logprob[own][batch.token_mask_NLA[own]].mean() / len(batch.trajectories)
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    torch.testing.assert_close(recorder.gradients[0], expected, atol=1e-7, rtol=1e-5)


def test_an_iteration_without_spread_changes_nothing(tmp_path):
    class AllEqual(RolloutCallback):
        def score(self, groups):
            for group in groups:
                for trajectory in group.trajectories:
                    trajectory.reward = 1.0

    _, module, _, recorder = fit(tmp_path, callbacks=[AllEqual()])
    assert not recorder.gradients
    assert torch.equal(module.policy.head.weight, ToyPolicy().head.weight)
    assert recorder.metrics[0]["rollout/groups_with_spread"] == 0


class OneGroupMixed(RolloutCallback):
    """Of the groups, one alone has a spread of rewards; keeps what the steps train on."""

    def __init__(self):
        self.steps, self.batches = [], []

    def score(self, groups):
        self.steps += [trajectory.steps for group in groups for trajectory in group.trajectories]
        for index, group in enumerate(groups):
            for i, trajectory in enumerate(group.trajectories):
                trajectory.reward = float(index == 1 and i % 2)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


@pytest.mark.parametrize("norm", ["traj_mean", "token_mean"])
def test_planned_counts_dropped_groups_as_zeros(tmp_path, norm):
    """16 trajectories in two steps are 8 a step; 4 are left, 2 a step."""
    _, _, _, kept = fit(tmp_path, iterations=1, callbacks=[OneGroupMixed()], loss_norm=norm)
    mixed = OneGroupMixed()
    _, _, _, planned = fit(tmp_path, iterations=1, callbacks=[mixed], loss_norm=norm, normalise_by="planned")
    (metrics,) = planned.metrics
    assert metrics["train/optimizer_steps"] == 2
    assert metrics["train/trajectories_per_step"] == 2
    steps = sum(trajectory.steps for trajectory in mixed.batches[0].trajectories)
    # by tokens: of the 8 planned ones, as many control steps as the iteration's episodes have on average
    share = {"traj_mean": 2 / 8, "token_mean": steps / (8 * sum(mixed.steps) / 16)}[norm]
    assert kept.gradients[0].norm() > 1e-3
    torch.testing.assert_close(planned.gradients[0], kept.gradients[0] * share, atol=1e-8, rtol=1e-5)
    assert metrics["train/entropy"] == pytest.approx(kept.metrics[0]["train/entropy"], rel=1e-2)  # a mean all the same


def test_planned_equals_kept_where_nothing_is_dropped(tmp_path):
    gradients = [
        fit(tmp_path, iterations=1, group_filter="keep", normalise_by=by)[3].gradients[0] for by in ("kept", "planned")
    ]
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-6)


def test_steps_that_no_trajectory_is_left_for_are_not_taken(tmp_path):
    _, _, _, recorder = fit(tmp_path, iterations=1, callbacks=[OneGroupMixed()], minibatches=8)
    assert recorder.metrics[0]["train/optimizer_steps"] == 4
    assert recorder.metrics[0]["train/trajectories_per_step"] == 1


class KeepsNothingOfTheFirst(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            batch.select_(torch.tensor([0]))
            batch.token_mask_NLA.zero_()


def test_real_chunks_are_counted_where_a_mask_keeps_nothing(tmp_path):
    _, _, _, all_kept = fit(tmp_path, iterations=1)
    _, _, _, first_empty = fit(tmp_path, iterations=1, callbacks=[KeepsNothingOfTheFirst()])
    assert first_empty.metrics[0]["chunks/real"] == all_kept.metrics[0]["chunks/real"]
    assert 0 < first_empty.metrics[0]["chunks/kept"] < all_kept.metrics[0]["chunks/kept"]


def test_chunks_are_counted(tmp_path):
    _, _, _, recorder = fit(tmp_path)
    for metrics in recorder.metrics:
        assert metrics["chunks/kept"] == metrics["chunks/real"] > 0


def test_training_learns_the_toy(tmp_path):
    _, _, _, recorder = fit(tmp_path, iterations=25)
    rates = [m["rollout/success"] for m in recorder.metrics]
    assert sum(rates[-5:]) / 5 > sum(rates[:5]) / 5 + 0.2


def test_heldout_success_is_measured_both_ways(tmp_path):
    trainer, module, data, _ = fit(tmp_path, iterations=0)
    (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
    assert module.heldout["sampled"].episodes == 6
    assert module.heldout["greedy"].episodes == 3
    assert metrics["heldout/sampled_success"] == pytest.approx(module.heldout["sampled"].rate)
    assert metrics["heldout/greedy_success"] == pytest.approx(module.heldout["greedy"].rate)


class NoNumber(Callback):
    """Makes the loss of some optimizer steps, counted from 0, a NaN."""

    def __init__(self, steps):
        self.steps, self.count = steps, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.count in self.steps:
            batch.advantage_N.fill_(float("nan"))
        self.count += 1


def test_a_step_that_is_no_number_is_skipped(tmp_path):
    with pytest.warns(UserWarning, match="is skipped: loss nan, gradient norm nan") as caught:
        trainer, module, _, recorder = fit(tmp_path, callbacks=[NoNumber({0, 1, 3})])
    said = [str(w.message).partition(" is skipped")[0] for w in caught]
    assert {f"optimizer step of iteration {i}" for i in (1, 2)} <= set(said)
    assert trainer.global_step == len(recorder.gradients) == 1
    assert [m["train/skipped_steps"] for m in recorder.metrics] == [2, 1]
    assert module.policy.head.weight.isfinite().all()


def test_steps_that_stay_no_numbers_stop_the_run(tmp_path):
    numberless = NoNumber({1, 2, 3})  # the last one of the first iteration, and both of the second
    with pytest.warns(UserWarning), pytest.raises(RunError, match="3 optimizer steps in a row.*iteration 2.*optim.lr="):
        fit(tmp_path, iterations=9, callbacks=[numberless])
    assert numberless.count == 4


def test_how_many_steps_were_skipped_in_a_row_is_in_the_checkpoint(tmp_path):
    with pytest.warns(UserWarning):
        _, module, _, _ = fit(tmp_path, iterations=1, callbacks=[NoNumber({0, 1})])
    checkpoint = {"state_dict": dict(module.state_dict())}
    module.on_save_checkpoint(checkpoint)
    _, other, _, _ = fit(tmp_path, iterations=1)
    other.on_load_checkpoint(checkpoint)
    assert other._skipped == 2


def test_checkpoints_hold_trainable_tensors_only(tmp_path):
    _trainer, module, _, _ = fit(tmp_path, iterations=1)
    module.policy.head.bias.requires_grad_(False)
    checkpoint = {"state_dict": dict(module.state_dict())}
    module.on_save_checkpoint(checkpoint)
    assert list(checkpoint["state_dict"]) == ["policy.head.weight"]
