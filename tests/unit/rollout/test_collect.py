import torch

from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.rollout.collect import collect
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
