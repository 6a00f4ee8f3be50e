"""Scores of chunks from the rollout's distributions, with numbers worked out by hand."""

import math

import pytest
import torch

from vla_rl.functional.token_scores import chunk_entropy, chunk_score_norm, token_entropy, token_score_sq


def test_token_entropy():
    logprob = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]).log()
    expected = [math.log(2), 0.25 * math.log(4) + 0.75 * math.log(4 / 3), 0.0]
    assert token_entropy(logprob).tolist() == pytest.approx(expected)


def test_token_score_is_the_squared_gradient_with_respect_to_the_logits():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    token = torch.tensor([0, 2, 5, 5])
    logits.log_softmax(-1).gather(-1, token[:, None]).sum().backward()
    score_sq = token_score_sq(logits.detach().log_softmax(-1), token)
    torch.testing.assert_close(score_sq, logits.grad.square().sum(-1))


def test_chunks_count_executed_steps_alone():
    value_NLA = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], [[1.0, 3.0, 2.0], [99.0] * 3]])
    executed_N = torch.tensor([2, 1])
    assert chunk_entropy(value_NLA, executed_N).tolist() == [3.0, 2.0]
    # -2 * sqrt(18) and -2 * sqrt(6), positive
    advantage_N = torch.tensor([-2.0, -2.0])
    assert chunk_score_norm(value_NLA, executed_N, advantage_N).tolist() == pytest.approx([2 * 18**0.5, 2 * 6**0.5])
