"""Masks by the size of each chunk's own advantage."""

import pytest
import torch

from callbacks.masks.advantage_mask import AdvantageMask, GlobalAdvantage
from callbacks.masks.critic_choice import CriticChoice
from tests.helpers.make import MadeData, make_trajectory, train
from tests.helpers.toy_training import Rewards
from tests.helpers.toy_training import fit as fit_toy
from tests.unit.callbacks.masks.test_masks import kept_of
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.errors import UserError
from vla_rl.functional.sampling import TOP, top_chunks, top_inclusion
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.types import RolloutGroup


def with_advantages(*advantages, uid=0):
    trajectory = make_trajectory([0] * len(advantages), uid=uid)
    trajectory.advantage_N = torch.tensor(advantages)
    return trajectory


def mask_of(estimator="top", budget=2):
    mask = AdvantageMask(budget, estimator)
    mask.data = MadeData()
    return mask


@pytest.mark.parametrize(
    ("budget", "kept"), [(1, [1]), (2, [1, 4]), (3, [1, 2, 4]), (5, [0, 1, 2, 4]), ({"fraction": 0.4}, [1, 4])]
)
def test_top_keeps_the_largest_whatever_their_sign(budget, kept):
    """Of equal ones the earlier; nothing without advantage, though the budget would allow it."""
    trajectory = with_advantages(0.5, -3.0, -1.0, 0.0, 3.0)
    mask = mask_of(budget=budget)
    assert mask.choose(trajectory, seeded_generator(0)).tolist() == kept
    assert mask.inclusion(trajectory).nonzero().squeeze(1).tolist() == kept
    weight_K, share_K = mask.loss_weights(trajectory, torch.tensor(kept))
    assert weight_K.tolist() == share_K.tolist() == [1.0] * len(kept)


def test_equal_weights_go_to_the_earlier():
    assert top_chunks(torch.ones(40), 3, torch.Generator()).tolist() == [0, 1, 2]
    assert top_inclusion(torch.ones(4), 3).tolist() == [1, 1, 1, 0]


def test_ht_draws_in_proportion():
    """|A| 4 2 1 1, two kept: pi 1 1/2 1/4 1/4."""
    trajectory, mask = with_advantages(4.0, -2.0, 1.0, -1.0), mask_of("ht")
    torch.testing.assert_close(mask.inclusion(trajectory), torch.tensor([1, 0.5, 0.25, 0.25], dtype=torch.float64))
    draws = [mask.choose(trajectory, seeded_generator(i)) for i in range(2000)]
    share_4 = torch.cat(draws).bincount(minlength=4) / 2000
    assert (share_4 - mask.inclusion(trajectory)).abs().max() < 0.045  # 4 sqrt(.25 / 2000)


def test_ht_divides_by_the_probability():
    """|A| 4 2 1 1, two kept: pi 1 1/2 1/4 1/4."""
    trajectory, mask = with_advantages(4.0, -2.0, 1.0, -1.0), mask_of("ht")
    weight_K, share_K = mask.loss_weights(trajectory, torch.tensor([0, 2]))
    assert weight_K.tolist() == [1, 4]
    assert share_K.tolist() == [2, 2]  # tokens of the trajectory over those kept
    trajectory.executed_N[-1] = 2  # of 8: 26 steps, 10 of them in the first and the last chunk
    assert mask.loss_weights(trajectory, torch.tensor([0, 3]))[1].tolist() == pytest.approx([2.6, 2.6])
    assert [values.tolist() for values in mask.loss_weights(trajectory, torch.tensor([], dtype=torch.int64))] == [
        [],
        [],
    ]


def test_by_default_nothing_is_drawn():
    assert AdvantageMask().estimator is TOP


def test_the_iterations_largest_are_kept_over_all_trajectories(tmp_path):
    def groups(iteration):
        members = (
            with_advantages(3.0, -2.0, 0.1, uid=0),
            with_advantages(0.2, 0.3, -0.2, uid=1),
            with_advantages(0.0, uid=2),
        )
        return [RolloutGroup(list(members))]

    assert kept_of(train(tmp_path, GlobalAdvantage(budget=1), data=MadeData(groups))) == {0: [0, 1], 1: [1]}


def test_critic_choice_keeps_by_the_critic_and_trains_by_the_group():
    """Rewards 1 0 0 0: mean 1/4, std sqrt(3)/4, so sqrt(3) and -1/sqrt(3)."""
    members = [with_advantages(0.5, -3.0, 0.0, uid=uid) for uid in range(4)]
    for member, reward in zip(members, (1.0, 0.0, 0.0, 0.0), strict=True):
        member.reward = reward
    members[1].actions.extras["step_advantage"] = torch.ones(3, 8)
    mask = CriticChoice(budget=1)
    mask.data = MadeData()
    mask.set_advantages([RolloutGroup(members)])
    assert [mask.choose(t, seeded_generator(0)).tolist() for t in members] == [[1]] * 4
    advantage_MN = torch.stack([t.advantage_N for t in members])
    expected_M1 = torch.tensor([[3**0.5], [-(3**-0.5)], [-(3**-0.5)], [-(3**-0.5)]])
    torch.testing.assert_close(advantage_MN, expected_M1.expand(4, 3), atol=1e-4, rtol=0)  # eps
    assert "step_advantage" not in members[1].actions.extras


class ChunkAdvantages(RolloutCallback):
    """Stands for a critic: advantages that grow along an episode, or none at all."""

    def __init__(self, slope):
        self.slope = slope

    def set_advantages(self, groups):
        for t in (t for group in groups for t in group.trajectories):
            t.advantage_N = self.slope * torch.arange(1.0, len(t) + 1)


class Learnt(RolloutCallback):
    """What the steps learnt from: the chunks that were left of an episode, and their advantages."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for index, trajectory in enumerate(batch.trajectories):
            advantages = batch.advantage_N[batch.trajectory_N == index].tolist()
            self.rows.append((len(trajectory), batch.chunks_of(index).tolist(), trajectory.reward, advantages))


def test_critic_choice_in_training(tmp_path):
    """The critic's advantages grow along an episode and choose its last two chunks."""
    callbacks = [Rewards(1, 0, 0, 0), ChunkAdvantages(1.0), CriticChoice(budget=2), learnt := Learnt()]
    fit_toy(tmp_path, callbacks=callbacks, advantage="gae", group_filter="keep", iterations=1, advantage_eps=0.0)
    assert len(learnt.rows) == 16
    for chunks, kept, reward, advantages in learnt.rows:
        assert kept == [chunks - 2, chunks - 1]
        assert advantages == pytest.approx([3**0.5 if reward else -(3**-0.5)] * 2)


@pytest.mark.parametrize("mask", [mask_of, lambda: mask_of("ht"), lambda: GlobalAdvantage(budget=2)])
def test_training_with_and_without_any_advantage(tmp_path, mask):
    gae = {"advantage": "gae", "group_filter": "keep", "iterations": 1}
    _, _, _, recorder = fit_toy(tmp_path, callbacks=[mask(), ChunkAdvantages(1.0)], **gae)
    assert len(recorder.gradients) == 2 and recorder.metrics[0]["chunks/kept"] == 2 * 16  # of each of 16 episodes
    _, _, _, recorder = fit_toy(tmp_path, callbacks=[mask(), ChunkAdvantages(0.0)], **gae)
    assert not recorder.gradients and recorder.metrics[0]["chunks/kept"] == 0


@pytest.mark.parametrize(
    ("mask", "name"),
    [(AdvantageMask, "advantage"), (CriticChoice, "critic_choice"), (GlobalAdvantage, "global_advantage")],
)
def test_without_a_critic_it_is_refused(tmp_path, mask, name):
    line = f"mask={name} needs a critic's advantage of each chunk, and grpo.advantage=rloo gives .*: critic=separate "
    with pytest.raises(UserError, match=line):
        fit_toy(tmp_path, callbacks=[mask(budget=2)], advantage="rloo")
