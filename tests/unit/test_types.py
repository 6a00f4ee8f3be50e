"""The data nouns."""

import pytest
import torch

from tests.helpers.make import make_trajectory
from vla_rl.types import ActionChunk, ChunkBatch, RolloutGroup, executed_mask


@pytest.fixture
def batch():
    """Rows 3000, 3001 (8 and 3 executed steps) and 5000, 5001, 5002."""
    return ChunkBatch.from_trajectories([
        make_trajectory([0, 8], uid=3, advantage=0.5, last_steps=3),
        make_trajectory([0, 8, 0], uid=5, advantage=-1.0),
    ])  # fmt: skip


def test_trajectory_counts_executed_steps():
    trajectory = make_trajectory([0, 8, 0], last_steps=3)
    assert len(trajectory) == 3
    assert trajectory.steps == 19
    assert trajectory.executed_NL.sum(1).tolist() == [8, 8, 3]
    assert trajectory.executed_NL[2].tolist() == [True] * 3 + [False] * 5


@pytest.mark.parametrize(("outcomes", "mixed"), [([True, True], False), ([False, False], False), ([True, False], True)])
def test_group_of_outcomes(outcomes, mixed):
    group = RolloutGroup([make_trajectory([0], success=success) for success in outcomes])
    assert group.successes == sum(outcomes)
    assert group.mixed is group.has_spread is mixed


def test_shaped_rewards_spread_without_failures():
    group = RolloutGroup([make_trajectory([0]), make_trajectory([0])])
    group.trajectories[0].reward = 1.5
    assert group.has_spread
    assert not group.mixed
    assert group.reward_G.tolist() == [1.5, 1.0]


def test_batch_rows(batch):
    assert len(batch) == 5
    assert batch.proprio_NP[:, 0].tolist() == [3000, 3001, 5000, 5001, 5002]
    assert batch.trajectory_N.tolist() == [0, 0, 1, 1, 1]
    assert batch.chunk_N.tolist() == [0, 1, 0, 1, 2]
    assert batch.advantage_N.tolist() == [0.5, 0.5, -1.0, -1.0, -1.0]
    assert batch.token_mask_NLA.sum((1, 2)).tolist() == [56, 21, 56, 56, 56]  # executed steps x 7 dimensions
    assert batch.instruction_N == ["task of 3"] * 2 + ["task of 5"] * 3


def test_select_shrinks_every_field_in_place(batch):
    same = batch
    batch.select_(torch.tensor([4, 1, 1]))
    assert same is batch
    assert len(batch) == 3
    assert batch.proprio_NP[:, 0].tolist() == [5002, 3001, 3001]
    assert batch.chunk_N.tolist() == [2, 1, 1]
    assert batch.frame_NHWC[:, 0, 0, 0].tolist() == [5, 3, 3]
    assert batch.actions.drawn["token"][:, 0, 0].tolist() == [5, 3, 3]
    assert batch.token_mask_NLA.sum((1, 2)).tolist() == [56, 21, 21]
    assert batch.actions.logprob_NLA.shape == (3, 8, 7)
    assert len(batch.trajectories) == 2  # rows go, the episodes they came from stay
    assert batch.instruction_N == ["task of 5", "task of 3", "task of 3"]


def test_rows_are_views(batch):
    micro = batch.rows(1, 3)
    assert micro.proprio_NP[:, 0].tolist() == [3001, 5000]
    assert micro.trajectories is batch.trajectories
    assert micro.frame_NHWC.data_ptr() == batch.frame_NHWC[1:].data_ptr()


def test_tokens_are_masked_one_by_one(batch):
    batch.token_mask_NLA[0, 0, 0] = False
    assert batch.token_mask_NLA.sum((1, 2)).tolist() == [55, 21, 56, 56, 56]


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one trajectory"):
        ChunkBatch.from_trajectories([])


def test_executed_mask():
    assert executed_mask(torch.tensor([3, 1]), 4).int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_action_chunks_stack_their_rows_again():
    chunk = make_trajectory([0, 8, 0], uid=2).actions
    chunk.logprob_NLA += torch.arange(3.0)[:, None, None]
    chunk.extras["value"] = torch.tensor([0.1, 0.2, 0.3])
    again = ActionChunk.stack([chunk.row(n) for n in range(len(chunk))])
    assert torch.equal(again.logprob_NLA, chunk.logprob_NLA)
    assert torch.equal(again.command_NLA, chunk.command_NLA)
    assert torch.equal(again.extras["value"], chunk.extras["value"])
    both = ActionChunk.cat([chunk, chunk.rows(torch.tensor([2, 0]))])
    assert both.extras["value"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.1])
    assert both.logprob_NLA[:, 0, 0].tolist() == [-1, 0, 1, 1, -1]


def test_extras_follow_the_rows_of_a_batch(batch):
    batch.actions.extras["value"] = torch.arange(5.0)
    batch.select_(torch.tensor([3, 1]))
    assert batch.actions.extras["value"].tolist() == [3, 1]
    assert batch.rows(1, 2).actions.extras["value"].tolist() == [1]


def test_one_advantage_for_all_chunks_or_one_for_each():
    trajectory = make_trajectory([0, 8, 0])
    assert trajectory.advantage == 0.0
    assert trajectory.advantage_N.tolist() == [0, 0, 0]
    trajectory.set_advantage(0.1)
    assert trajectory.advantage == pytest.approx(0.1)
    assert len(trajectory.advantage_N) == 3
    trajectory.advantage_N = torch.tensor([1.0, 2.0, 6.0])
    assert trajectory.advantage == 3.0
    assert ChunkBatch.from_trajectories([trajectory]).advantage_N.tolist() == [1, 2, 6]
