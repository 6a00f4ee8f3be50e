"""Rollouts ahead, by a copy of the policy; in this process, with the toy world."""

import copy
import threading
import time

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


class Held(ToyPolicy):
    """Answers when it is let go, also a copy of it."""

    asked, let_go = threading.Event(), threading.Event()

    def act(self, *given):
        self.asked.set()
        assert self.let_go.wait(10)
        return super().act(*given)


@pytest.fixture
def held():
    Held.asked.clear()
    Held.let_go.clear()
    return Held()


@pytest.mark.parametrize("end", [AsyncRollouts.wait, AsyncRollouts.cancel])
def test_waiting_and_cancelling_last_until_the_simulators_are_free(end, held):
    ahead, pool = AsyncRollouts(ToyPool(), temperature=1.6), ToyPool()
    end(ahead)  # nothing to wait for
    ahead = AsyncRollouts(pool, temperature=1.6)
    ahead.start(held, episodes(2))
    assert held.asked.wait(10)
    ended = threading.Thread(target=end, args=(ahead,))
    ended.start()
    ended.join(0.05)
    assert ended.is_alive()
    held.let_go.set()
    ended.join(10)
    assert not ended.is_alive() and not ahead._thread.is_alive()
    assert len(pool.started) == 2


def test_the_seconds_of_a_collection_ahead_are_those_waited_for_it(held):
    ahead = AsyncRollouts(ToyPool(), temperature=1.6)
    ahead.start(held, episodes(1))
    began = time.perf_counter()
    threading.Timer(0.05, held.let_go.set).start()
    _, split = ahead.take(None)
    assert 0.01 < split.wait_s == split.total_s <= time.perf_counter() - began


def test_a_cancelled_collection_asks_the_policy_no_more():
    ahead = AsyncRollouts(ToyPool(), temperature=1.6)
    ahead.cancel()
    ahead.start(ToyPolicy(), episodes(2))
    with pytest.raises(Cancelled):
        ahead.take(None)
