"""How an iteration's trajectories become minibatches, on one rank and on two."""

from tests.helpers.make import make_trajectory
from vla_rl.rollout.collect import TimeSplit
from vla_rl.rollout.epoch import Collected, RolloutEpoch
from vla_rl.types import RolloutGroup

UIDS = range(11)


def epoch(own=UIDS, *, gather=list, iteration=2, seed=0, trained=True):
    collections = []

    def collect():
        collections.append(own)
        trajectories = [make_trajectory([0, 0], uid=uid) for uid in own]
        return Collected([RolloutGroup(trajectories)], trajectories if trained else [], TimeSplit())

    made = RolloutEpoch(iteration, 3, 2, seed, collect, gather)
    made.collections = collections
    return made


def uids(made):
    return [[t.episode.uid for t in batch.trajectories] for batch in made]


def test_each_pass_has_each_trajectory_once_in_the_same_minibatches():
    made = epoch()
    batches = uids(made)
    assert len(made) == len(batches) == 6
    assert [len(batch) for batch in batches] == [4, 4, 3] * 2
    assert batches[:3] == batches[3:]
    assert sorted(uid for batch in batches[:3] for uid in batch) == list(UIDS)
    assert uids(made) == batches
    assert len(made.collections) == 1


def test_the_order_is_drawn_by_seed_and_iteration():
    plain = uids(epoch())
    assert any(batch != sorted(batch) for batch in plain)
    assert uids(epoch()) == plain
    assert uids(epoch(seed=1)) != plain
    assert uids(epoch(iteration=3)) != plain


def test_a_minibatch_holds_the_same_trajectories_however_they_are_shared_out():
    shares = [1, 4, 5, 9], [0, 2, 3, 6, 7, 8, 10]
    alone = uids(epoch())
    ranks = [uids(epoch(own, gather=lambda _: [*shares[0], *shares[1]])) for own in shares]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert first == [uid for uid in whole if uid in shares[0]]
        assert second == [uid for uid in whole if uid in shares[1]]


def test_a_batch_without_a_trajectory_holds_one_row_that_does_not_count():
    for batch in epoch(trained=False):
        assert batch.stand_in and len(batch) == 1 and not batch.token_mask_NLA.any()
    assert not any(batch.stand_in for batch in epoch())
