import time

import pytest
import torch

from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.errors import RunError
from vla_rl.rollout.collect import TimeSplit, collect
from vla_rl.types import Episode


def episodes(count: int, window: int | None = None) -> list[Episode]:
    return [Episode(uid=i, task=i % 2, init_state=i, seed=100 + i, window=window) for i in range(count)]


def same(a, b) -> bool:
    names = ("frame_NHWC", "proprio_NP", "gripper_closed_NL", "executed_N")
    answers = ("logprob_NLA", "action_NLA", "command_NLA", "entropy_NLA")
    equal = [torch.equal(getattr(a, n), getattr(b, n)) for n in names]
    equal += [torch.equal(getattr(a.actions, n), getattr(b.actions, n)) for n in answers]
    equal += [torch.equal(a.actions.drawn["token"], b.actions.drawn["token"])]
    return all(equal) and a.success == b.success


def test_results_do_not_depend_on_the_number_of_slots():
    one, _ = collect(ToyPool(slots=1), ToyPolicy(), episodes(9), temperature=1.0)
    four, _ = collect(ToyPool(slots=4), ToyPolicy(), episodes(9), temperature=1.0)
    assert [t.episode.uid for t in four] == list(range(9))
    assert all(same(a, b) for a, b in zip(one, four, strict=True))
    assert 0 < sum(t.success for t in one) < 9  # else the comparison would say little


def test_a_trajectory_ends_with_its_episode():
    trajectories, _ = collect(ToyPool(), ToyPolicy(), episodes(9), temperature=1.0)
    for trajectory in trajectories:
        assert trajectory.steps == 12 if not trajectory.success else trajectory.steps >= 4
        assert len(trajectory.actions.drawn["token"]) == len(trajectory.frame_NHWC) == len(trajectory)
        # the toy's frames hold the steps taken before the decision
        assert trajectory.frame_NHWC[:, 0, 0, 0].tolist() == [0, *trajectory.executed_N.cumsum(0)[:-1].tolist()]
        assert not trajectory.gripper_closed_NL[~trajectory.executed_NL].any()


def test_it_says_whether_the_frames_are_turned():
    class TurnedPool(ToyPool):
        turned = True

    for pool in (ToyPool(), TurnedPool()):
        (trajectory,), _ = collect(pool, ToyPolicy(), episodes(1), temperature=1.0)
        assert trajectory.turned == isinstance(pool, TurnedPool)


def test_windows_limit_what_is_executed():
    trajectories, _ = collect(ToyPool(), ToyPolicy(), episodes(3, window=1), temperature=1.0)
    assert all(t.executed_N.max() == 1 for t in trajectories)


def test_slots_are_refilled_at_once():
    pool = ToyPool(slots=2)
    seen = []
    collect(pool, ToyPolicy(), episodes(5), temperature=1.0, on_done=lambda t: seen.append(len(pool.started)))
    assert seen[0] == 2
    assert len(pool.started) == 5
    # a third episode starts before the second of the first two has ended, unless both ended together
    assert seen[1] >= 2
    assert seen == sorted(seen)


def test_greedy_does_not_depend_on_the_seed():
    a, _ = collect(ToyPool(), ToyPolicy(), [Episode(0, 0, 1, seed=1)], temperature=0.0)
    b, _ = collect(ToyPool(), ToyPolicy(), [Episode(0, 0, 1, seed=2)], temperature=0.0)
    assert same(a[0], b[0])


def test_every_decision_draws_its_own_noise():
    policy = ToyPolicy()
    torch.nn.init.zeros_(policy.head.weight)  # uniform over tokens at every decision
    (trajectory,), _ = collect(ToyPool(), policy, [Episode(0, 0, 4, seed=1)], temperature=1.0)
    assert len({tuple(tokens.flatten().tolist()) for tokens in trajectory.actions.drawn["token"]}) > 1


class Overwrites(ToyPool):
    """Each slot's observations are in one piece of memory, as a simulator's are."""

    def wait(self):
        events = super().wait()
        for event in events:
            frame_HWC, proprio_P = self.memory.setdefault(event.slot, (event.frame_HWC, event.proprio_P))
            frame_HWC.copy_(event.frame_HWC)
            proprio_P.copy_(event.proprio_P)
            event.frame_HWC, event.proprio_P = frame_HWC, proprio_P
        return events

    def __init__(self):
        super().__init__()
        self.memory = {}


def test_what_was_seen_stays_though_the_memory_of_a_slot_is_used_again():
    plain, _ = collect(ToyPool(), ToyPolicy(), episodes(9), temperature=1.0)
    found, _ = collect(Overwrites(), ToyPolicy(), episodes(9), temperature=1.0)
    for a, b in zip(plain, found, strict=True):
        assert same(a, b)
        assert torch.equal(a.last_frame_HWC, b.last_frame_HWC) and torch.equal(a.last_proprio_P, b.last_proprio_P)
        assert a.last_frame_HWC.unique().tolist() == [a.steps]  # the toy's frames hold the steps taken
        assert float(a.last_proprio_P[1]) == pytest.approx(a.steps / 12)


def test_every_frame_is_augmented_once():
    plain, darker = episodes(3), episodes(3)
    for episode in darker:
        episode.augment = lambda frame_HWC: frame_HWC + 100
    for a, b in zip(*(collect(ToyPool(), ToyPolicy(), e, temperature=1.0)[0] for e in (plain, darker)), strict=True):
        assert torch.equal(b.frame_NHWC, a.frame_NHWC + 100)
        assert torch.equal(b.last_frame_HWC, a.last_frame_HWC + 100)


def test_a_gripper_command_above_zero_closes():
    class Gripper(ToyPolicy):
        def act(self, *given):
            chunk = super().act(*given)
            chunk.command_NLA[:, 0, -1], chunk.command_NLA[:, 1, -1] = 0.0, 0.1
            return chunk

    seen = []
    episode = Episode(0, 0, 4, seed=1, lost=lambda decision: seen.append(decision.closing_before))
    (trajectory,), _ = collect(ToyPool(), Gripper(), [episode], temperature=1.0)
    assert torch.equal(trajectory.gripper_closed_NL[:, 1], trajectory.executed_N > 1)
    assert not trajectory.gripper_closed_NL[:, 0].any()
    assert seen == [0.0, *[0.5] * (len(trajectory) - 1)]


@pytest.mark.parametrize("name", ["logprob_NLA", "command_NLA"])
def test_a_policy_that_computes_nan_ends_the_collection(name):
    class Diverged(ToyPolicy):
        def act(self, *given):
            chunk = super().act(*given)
            getattr(chunk, name)[-1, -1, -1] = float("nan")
            return chunk

    with pytest.raises(RunError, match="NaN or infinity: its weights have diverged .a smaller optim.lr"):
        collect(ToyPool(), Diverged(), episodes(3), temperature=1.0)


def test_where_the_time_went_adds_up():
    assert TimeSplit(1.0, 2.0, 4.0) + TimeSplit(10.0, 20.0, 40.0) == TimeSplit(11.0, 22.0, 44.0)
    began = time.perf_counter()
    _, split = collect(ToyPool(), ToyPolicy(), episodes(3), temperature=1.0)
    assert 0 < split.wait_s + split.infer_s <= split.total_s <= time.perf_counter() - began
