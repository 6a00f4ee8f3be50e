"""What thousands of draws come to: inclusion probabilities are frequencies, and estimates average to the truth."""

from collections import Counter
from functools import cache

import pytest
import torch

from tests.unit.functional.test_sampling import WEIGHTS
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.functional.sampling import (
    ESTIMATORS,
    plackett_luce_inclusion,
    proportional_inclusion,
    select_chunks,
    systematic_sample,
)

pytestmark = pytest.mark.no_cover  # the same few lines, thousands of times

VALUE_N = torch.tensor([3.0, 2, 3, 2, 1, 0, 1, 0, -2, -1, -3, 5], dtype=torch.float64)


def frequency(draw, chunks, draws=10_000):
    generator = seeded_generator("draws")
    counts = torch.zeros(chunks)
    for _ in range(draws):
        counts[draw(generator)] += 1
    return counts / draws


def test_ten_thousand_draws():
    share_N = frequency(lambda g: select_chunks(WEIGHTS, 5, g), 12)
    # 4 standard errors of a share of 10,000 draws are at most 4 * sqrt(.25 / 10000) = .02
    assert (share_N - plackett_luce_inclusion(WEIGHTS, 5)).abs().max() < 0.02


def test_systematic_sampling_has_exactly_these_frequencies():
    inclusion_N = proportional_inclusion(WEIGHTS, 5)
    sizes = set()

    def draw(generator):
        rows = systematic_sample(inclusion_N, generator)
        sizes.add(len(rows))
        return rows

    share_N = frequency(draw, 12)
    assert sizes == {5}
    assert (share_N - inclusion_N).abs().max() < 0.02


@cache
def drawn(name, draws):
    """How often each set of 4 chunks is drawn."""
    generator = seeded_generator(name)
    return Counter(tuple(ESTIMATORS[name].draw(WEIGHTS, 4, generator).tolist()) for _ in range(draws))


def estimate(name, value_N, draws=20_000):
    """Mean and spread over draws of one trajectory's loss: value_N per token, two tokens a chunk, the last has one."""
    tokens_N = torch.tensor([2] * 11 + [1])
    estimator = ESTIMATORS[name]
    inclusion_N = estimator.inclusion(WEIGHTS, 4)
    losses = []
    for rows, times in drawn(name, draws).items():
        rows = torch.tensor(rows)
        weight_K = share_K = torch.ones(len(rows), dtype=torch.float64)
        if estimator.loss_weights:
            weight_K, share_K = estimator.loss_weights(inclusion_N[rows], tokens_N[rows], int(tokens_N.sum()))
        loss = (value_N[rows] * tokens_N[rows] * weight_K).sum() / (tokens_N[rows] * share_K).sum()
        losses.append(loss.expand(times))
    losses = torch.cat(losses)
    return float(losses.mean()), float(losses.std()), float((value_N * tokens_N).sum() / tokens_N.sum())


def test_horvitz_thompson_is_unbiased():
    mean, std, truth = estimate("ht", VALUE_N)
    assert abs(mean - truth) < 4 * std / 20_000**0.5
    assert 4 * std / 20_000**0.5 < 0.05  # the bound means something: the paper's bias is far larger


def test_the_papers_is_biased_towards_what_is_drawn_often():
    mean, _, truth = estimate("paper", VALUE_N)
    assert mean > truth + 0.5


def test_hajek_is_less_biased_than_the_papers_and_exact_for_a_constant():
    paper, _, truth = estimate("paper", VALUE_N)
    hajek, _, _ = estimate("hajek", VALUE_N)
    assert abs(hajek - truth) < abs(paper - truth) / 2
    constant = torch.full((12,), 7.0, dtype=torch.float64)
    mean, std, truth = estimate("hajek", constant, draws=50)
    assert mean == pytest.approx(7.0)
    assert std == pytest.approx(0.0, abs=1e-12)
    assert estimate("ht", constant, draws=50)[1] > 0.1  # which Horvitz-Thompson is not
