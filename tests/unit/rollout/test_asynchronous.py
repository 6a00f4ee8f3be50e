"""Rollouts ahead, by a copy of the policy; in this process, with the toy world."""

import copy

import pytest
import torch

from tests.helpers.toy import ToyPolicy, ToyPool
from tests.unit.rollout.test_collect import episodes, same
from vla_rl.rollout.asynchronous import AsyncRollouts, Cancelled
from vla_rl.rollout.collect import collect


def moved(policy, by):
    with torch.no_grad():
        policy.head.bias += torch.linspace(0, by, len(policy.head.bias))
    return policy


def expected(policy):
    return collect(ToyPool(), policy, episodes(5), temperature=1.6)[0]


def taken(ahead):
    return ahead.take(None)[0]


def alike(found, wanted):
    return all(same(a, b) for a, b in zip(found, wanted, strict=True))


def test_each_start_takes_the_weights_of_then_and_the_copy_keeps_them():
    policy, ahead = ToyPolicy(), AsyncRollouts(ToyPool(), temperature=1.6)
    first, second = expected(policy), expected(moved(copy.deepcopy(policy), 2.0))
    assert not alike(first, second)
    ahead.start(policy, episodes(5))
    stored = ahead.weights()
    ahead.wait()
    assert len(ahead.episodes) == 5
    moved(policy, 2.0)
    ended = []
    found, split = ahead.take(ended.append)
    assert alike(found, first) and len(ended) == 5 and split.total_s == split.wait_s
    assert not ahead.episodes
    ahead.start(policy, episodes(5))
    assert alike(taken(ahead), second)
    ahead.start(policy, episodes(5), stored)  # a run that goes on
    assert alike(taken(ahead), first)


def test_what_is_frozen_is_shared():
    policy, ahead = ToyPolicy(), AsyncRollouts(ToyPool(), temperature=1.6)
    policy.head.weight.requires_grad_(False)
    ahead.start(policy, episodes(1))
    taken(ahead)
    assert ahead._actor.head.weight is policy.head.weight
    assert ahead._actor.head.bias is not policy.head.bias
    assert ahead.weights().keys() == {"head.bias"}


def test_an_error_is_raised_where_the_result_is_taken():
    class Broken(ToyPolicy):
        def act(self, *_):
            raise RuntimeError("no more")

    ahead = AsyncRollouts(ToyPool(), temperature=1.6)
    ahead.start(Broken(), episodes(2))
    with pytest.raises(RuntimeError, match="no more"):
        ahead.take(None)


def test_a_cancelled_collection_asks_the_policy_no_more():
    ahead = AsyncRollouts(ToyPool(), temperature=1.6)
    ahead.cancel()
    ahead.start(ToyPolicy(), episodes(2))
    with pytest.raises(Cancelled):
        ahead.take(None)
