from dataclasses import fields

import pytest
import torch

from tests.helpers.policies import batch_of, make_observation, make_tiny_policy, row
from vla_rl.policy.openvla_oft.policy import sample
from vla_rl.types import ActionChunk, Policy


@pytest.fixture(scope="module")
def observation():
    return make_observation(5)


@pytest.fixture(scope="module")
def chunk(tiny_policy, observation):
    return tiny_policy.act(observation, [10, 11, 12, 13, 14], temperature=1.6)


def assert_same(one: ActionChunk, other: ActionChunk):
    assert torch.equal(one.drawn["token"], other.drawn["token"])
    for f in fields(ActionChunk):
        if f.name not in ("drawn", "extras"):
            assert torch.equal(getattr(one, f.name), getattr(other, f.name)), f.name


def test_it_is_a_policy(tiny_policy, chunk):
    assert isinstance(tiny_policy, Policy)
    assert chunk.drawn["token"].shape == chunk.logprob_NLA.shape == chunk.command_NLA.shape == (5, 8, 7)
    assert (chunk.drawn["token"].dtype, chunk.command_NLA.dtype) == (torch.int64, torch.float32)
    assert chunk.command_NLA.abs().max() <= 1
    assert set(chunk.command_NLA[..., -1].flatten().tolist()) <= {-1.0, 1.0}
    assert not chunk.logprob_NLA.requires_grad


def test_a_rows_answer_does_not_depend_on_the_other_rows(tiny_policy, observation, chunk):
    for n in range(5):
        alone = tiny_policy.act(row(observation, n), [10 + n], temperature=1.6)
        assert_same(alone, chunk.rows(slice(n, n + 1)))


def test_the_answer_does_not_depend_on_threads_or_mode(tiny_policy, observation, chunk):
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    tiny_policy.eval()
    other = tiny_policy.act(observation, [10, 11, 12, 13, 14], temperature=1.6)
    tiny_policy.train()
    torch.set_num_threads(threads)
    assert_same(other, chunk)


def test_the_seed_decides_and_greedy_needs_none(tiny_policy, observation, chunk):
    other = tiny_policy.act(observation, [0] * 5, temperature=1.6)
    assert not torch.equal(other.drawn["token"], chunk.drawn["token"])
    greedy = tiny_policy.act(observation, [10, 11, 12, 13, 14], temperature=0.0)
    assert torch.equal(greedy.drawn["token"], tiny_policy.logits(observation).argmax(-1))
    assert (greedy.logprob_NLA >= chunk.logprob_NLA).float().mean() > 0.9


def test_log_prob_agrees_with_act(tiny_policy, observation, chunk):
    logprob_NLA, entropy_NLA = tiny_policy.log_prob(batch_of(observation, chunk), temperature=1.6)
    # float32 noise: the batch of five rounds its matrix products differently from five single rows
    torch.testing.assert_close(logprob_NLA, chunk.logprob_NLA, atol=1e-5, rtol=0)
    assert logprob_NLA.requires_grad
    assert (entropy_NLA > 0).all()
    assert (entropy_NLA < 5.5452).all()


def test_the_state_for_a_value_head_is_what_the_first_token_is_read_from(tiny_policy, observation, chunk, monkeypatch):
    monkeypatch.setattr(tiny_policy, "extras", frozenset({"state"}))
    state_ND = tiny_policy.act(observation, [0] * len(observation.instruction_N), temperature=0.0).extras["state"]
    assert state_ND.shape == (5, tiny_policy.state_dims) and state_ND.dtype == torch.float32
    first = tiny_policy.model.language_model.lm_head(state_ND).argmax(-1)
    assert torch.equal(first, tiny_policy.logits(observation)[:, 0, 0].argmax(-1))
    batch = batch_of(observation, chunk)
    logprob_NLA, entropy_NLA, trained_ND = tiny_policy.log_prob_and_state(batch, temperature=1.6)
    torch.testing.assert_close(trained_ND, state_ND, atol=1e-4, rtol=1e-4)
    assert trained_ND.requires_grad
    for own, same in zip((logprob_NLA, entropy_NLA), tiny_policy.log_prob(batch, temperature=1.6), strict=True):
        assert torch.equal(own, same)


def test_log_prob_of_one_row_is_that_of_act_bit_for_bit(tiny_policy, observation):
    first = row(observation, 0)
    chunk = tiny_policy.act(first, [3], temperature=1.6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logprob_NLA, _ = tiny_policy.log_prob(batch_of(first, chunk), temperature=1.6)
    torch.set_num_threads(threads)
    assert torch.equal(logprob_NLA, chunk.logprob_NLA)


def test_every_weight_gets_a_gradient(observation, chunk):
    policy = make_tiny_policy()
    logprob_NLA, _ = policy.log_prob(batch_of(observation, chunk), temperature=1.0)
    logprob_NLA.sum().backward()
    assert [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradient_checkpointing_changes_nothing(observation, chunk):
    policy, batch = make_tiny_policy(), batch_of(observation, chunk)
    gradients = []
    for checkpointing in (False, True):
        policy.model.language_model.model.gradient_checkpointing = checkpointing
        policy.zero_grad()
        policy.log_prob(batch, temperature=1.0)[0].sum().backward()
        gradients.append(policy.model.projector.fc1.weight.grad.clone())
    assert torch.equal(*gradients)


def test_tokenize_inverts_the_command(tiny_policy, chunk):
    again = tiny_policy.tokenize(chunk.command_NLA)
    motion, command = again[..., :-1], chunk.command_NLA[..., :-1]
    bounds = tiny_policy.statistics.action
    inside = (command > bounds.q01[:-1]) & (command < bounds.q99[:-1]) & (command.abs() < 1)
    assert inside.float().mean() > 0.9
    assert ((motion - chunk.drawn["token"][..., :-1].clip(min=1))[inside] == 0).all()
    # the gripper: -1 opens, which the model calls 1 (bin 0); +1 closes, 0 for the model (bin 128)
    opens = chunk.command_NLA[..., -1] < 0
    assert torch.equal(again[..., -1], torch.where(opens, 0, 128))


def test_sample_follows_the_distribution_and_only_its_own_seed():
    logprob = torch.tensor([0.2, 0.0, 0.5, 0.3]).log().expand(2000, 1, 1, 4)
    token = sample(logprob, range(2000))
    share = torch.bincount(token.flatten(), minlength=4) / 2000
    # three standard deviations of a share of 2000 draws are at most 3 sqrt(.25 / 2000) = .034
    torch.testing.assert_close(share, torch.tensor([0.2, 0.0, 0.5, 0.3]), atol=0.034, rtol=0)
    assert torch.equal(sample(logprob[:1], [7]), token[7:8])
