"""Chunks of other lengths than the published 8 steps: acted, scored, saved, trained and planned for."""

from __future__ import annotations

import json

import pytest
import torch

from vla_rl.errors import UserError
from vla_rl.policy import load_policy, save_trained
from vla_rl.policy.memory import plan_memory
from vla_rl.policy.openvla_oft.action_head import per_step
from vla_rl.types import ChunkBatch, Episode, Observation, Trajectory

FRAME = torch.arange(128 * 128 * 3).view(1, 128, 128, 3).to(torch.uint8)
SEEN = Observation(FRAME, torch.zeros(1, 8), ["pick up the alphabet soup and place it in the basket"])


def trained(chunk_steps: int | None):
    return load_policy("shipped:object_tiny", chunk_steps=chunk_steps)


@pytest.mark.parametrize("chunk_steps", [1, 5, 16])
def test_what_is_sampled_is_what_is_scored(chunk_steps):
    policy = trained(chunk_steps)
    assert policy.chunk_steps == chunk_steps
    chunk = policy.act(SEEN, [3], 1.0)
    assert chunk.drawn["token"].shape == chunk.command_NLA.shape == (1, chunk_steps, 7)
    trajectory = Trajectory(
        Episode(0, 0, 0, 0), SEEN.instruction_N[0], SEEN.frame_NHWC, SEEN.proprio_NP, chunk,
        chunk.command_NLA[..., -1] > 0,
        torch.tensor([chunk_steps]), True, 1.0,
    )  # fmt: skip
    logprob, _ = policy.log_prob(ChunkBatch.from_trajectories([trajectory]), 1.0)
    torch.testing.assert_close(logprob, chunk.logprob_NLA, atol=1e-5, rtol=0)
    assert logprob.std() > 0


def test_the_number_of_slots_changes_every_prediction():
    """Attention is bidirectional: a chunk of 8 is not the first half of one of 16."""
    eight, sixteen = (trained(n).logits(SEEN) for n in (8, 16))
    assert not torch.allclose(eight, sixteen[:, :8], atol=1e-2)
    assert torch.equal(eight, trained(None).logits(SEEN))


def test_the_length_is_saved_with_the_policy(tmp_path):
    policy = trained(16)
    save_trained(policy, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["chunk_steps"] == 16
    assert torch.equal(load_policy(str(tmp_path)).logits(SEEN), policy.logits(SEEN))
    assert load_policy(str(tmp_path), chunk_steps=8).chunk_steps == 8  # asked for


def test_a_new_policy_may_have_any_length():
    policy = load_policy(None, chunk_steps=16)
    assert policy.logits(SEEN).shape == (1, 16, 7, 256)
    with pytest.raises(UserError, match="has learnt from demonstrations"):
        policy.act(SEEN, [0], 0.0)


def test_an_l1_head_reads_seven_slots_a_step():
    assert per_step(torch.zeros(2, 16 * 7, 5), 7).shape == (2, 16, 35)


def test_the_memory_plan_counts_the_slots():
    options = {"checkpoint": "shipped:object_tiny"}
    plan = lambda **more: plan_memory(options | more, rows=4, optimizer="adamw", available=10**9)  # noqa: E731
    assert plan(chunk_steps=16).per_row > plan().per_row * 1.2
    assert plan(chunk_steps=8) == plan()


@pytest.mark.parametrize("given", [0, 8.0, "8", True])
def test_a_length_that_cannot_be(given):
    with pytest.raises(ValueError, match="policy.chunk_steps=8"):
        load_policy(None, chunk_steps=given)
