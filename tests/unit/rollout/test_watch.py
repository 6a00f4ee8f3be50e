"""Episodes that are lost end early."""

from collections.abc import Callable

import pytest
import torch

from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.rollout.collect import collect
from vla_rl.rollout.watch import Watch
from vla_rl.types import Decision, Episode


def decision(index: int) -> Decision:
    return Decision(index, torch.zeros(4), None, 0.0)


@pytest.mark.parametrize(
    ("after", "values", "ends"),
    [
        (1, [0.05, 0.05, 0.05], [False, True, True]),  # never before the first decision, and lost once
        (2, [0.05, 0.2, 0.05, 0.05, 0.9], [False, False, False, True, True]),  # in a row
        (2, [0.1, 0.1, 0.1], [False, False, False]),  # below
        (3, [0.05, 0.05, 0.05], [False, False, True]),
    ],
)
def test_lost_is_a_low_value_for_some_decisions_in_a_row(after, values, ends):
    watch, silent = (Watch(lambda d: values[d.index], 0.1, after, runs_on) for runs_on in (False, True))
    assert [watch(decision(n)) for n in range(len(values))] == ends
    assert not any(silent(decision(n)) for n in range(len(values)))
    assert watch.lost_at == silent.lost_at == (ends.index(True) if True in ends else None)


def episodes(lost: dict[int, int]) -> list[Episode]:
    """Nine, and which of them are lost at which decision."""
    return [Episode(uid=i, task=i % 2, init_state=i, seed=100 + i, lost=at(lost.get(i))) for i in range(9)]


def at(index: int | None) -> Callable[[Decision], bool]:
    return lambda decision: decision.index == index


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_a_lost_episode_ends_before_its_decision_and_others_do_not_notice(slots):
    lost, ended = {0: 1, 1: 2, 5: 1, 8: 3}, []
    whole, _ = collect(ToyPool(), ToyPolicy(), episodes({}), temperature=1.0)
    pool = ToyPool(slots=slots)
    stopped, _ = collect(pool, ToyPolicy(), episodes(lost), temperature=1.0, on_done=ended.append)
    assert len(pool.started) == len(ended) == 9
    assert any(whole[uid].success for uid in lost)
    for of_whole, t in zip(whole, stopped, strict=True):
        chunks = lost.get(t.episode.uid, len(of_whole))
        assert len(t) == chunks < 7 and t.stopped == (t.episode.uid in lost)
        assert torch.equal(t.actions.logprob_NLA, of_whole.actions.logprob_NLA[:chunks])
        assert torch.equal(t.frame_NHWC, of_whole.frame_NHWC[:chunks])
        if t.stopped:
            assert not t.success and t.reward == 0
            assert torch.equal(t.last_proprio_P, of_whole.proprio_NP[chunks])
            assert torch.equal(t.last_frame_HWC, of_whole.frame_NHWC[chunks])


def test_what_is_known_of_a_decision():
    seen: list[Decision] = []
    episode = Episode(uid=0, task=0, init_state=0, seed=7, window=1, lost=lambda d: bool(seen.append(d)))
    [t], _ = collect(ToyPool(), ToyPolicy(), [episode], temperature=1.0)
    assert [d.index for d in seen] == list(range(len(t)))
    assert torch.equal(torch.stack([d.proprio_P for d in seen]), t.proprio_NP)
    assert torch.equal(torch.cat([d.answer.logprob_NLA for d in seen]), t.actions.logprob_NLA)
    closing_N = t.gripper_closed_NL.sum(1) / t.executed_N
    assert [d.closing_before for d in seen] == [0.0, *closing_N[:-1].tolist()]
    assert closing_N[:-1].any()


def test_each_episode_is_asked_about_its_own_decision():
    seen: dict[int, list[torch.Tensor]] = {i: [] for i in range(4)}
    plan = episodes({})[:4]
    for e in plan:
        e.lost = lambda d, uid=e.uid: bool(seen[uid].append(d.answer.logprob_NLA))
    for t in collect(ToyPool(slots=4), ToyPolicy(), plan, temperature=1.0)[0]:
        assert torch.equal(torch.cat(seen[t.episode.uid]), t.actions.logprob_NLA)
