"""A policy's episodes with every control step seen: they are those of the plain pool."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.rollout.collect import collect
from vla_rl.rollout.plan import heldout_episodes
from vla_rl.rollout.stepwise import StepwisePool
from vla_rl.types import Episode


def test_episodes_are_those_of_an_evaluation_and_every_step_is_seen():
    episodes = heldout_episodes([0, 1], (0, 5), 10, seed=3)
    episodes[4] = replace(episodes[4], window=1)
    plain, _ = collect(ToyPool(slots=3), ToyPolicy(), episodes, temperature=1.6)
    demos = {}
    pool = StepwisePool(ToyPool(slots=3), "toy", lambda episode, demo: demos.update({episode.uid: demo}))
    stepwise, _ = collect(pool, ToyPolicy(), episodes, temperature=1.6)
    assert {t.success for t in plain} == {True, False}
    assert any(int(t.executed_N[-1]) < t.window for t in plain)  # some end within a chunk
    for expected, found in zip(plain, stepwise, strict=True):
        demo = demos[found.episode.uid]
        assert torch.equal(found.actions.command_NLA, expected.actions.command_NLA)
        assert torch.equal(found.executed_N, expected.executed_N)
        assert torch.equal(found.frame_NHWC, expected.frame_NHWC)
        assert found.success == expected.success == demo.success
        assert len(demo) == expected.steps
        executed = expected.actions.command_NLA[expected.executed_NL]
        assert torch.equal(demo.action_TA, executed)
        assert demo.frame_THWC[:, 0, 0, 0].tolist() == list(range(expected.steps))  # the toy's frames count steps
        assert (demo.suite, demo.task, demo.init_state) == ("toy", found.episode.task, found.episode.init_state)
        assert (demo.seed, demo.instruction) == (found.episode.seed, expected.instruction)


def test_a_lost_episode_frees_its_slot_and_is_no_demonstration():
    episodes = [Episode(uid=i, task=i % 2, init_state=i, seed=100 + i) for i in range(6)]
    for episode in episodes[1:4]:
        episode.lost = lambda decision: decision.index == 1
    plain, _ = collect(ToyPool(slots=1), ToyPolicy(), episodes, temperature=1.6)
    demos = {}
    pool = StepwisePool(ToyPool(slots=1), "toy", lambda episode, demo: demos.update({episode.uid: demo}))
    stepwise, _ = collect(pool, ToyPolicy(), episodes, temperature=1.6)  # the toy refuses to start a busy slot again
    assert [t.stopped for t in stepwise] == [False, True, True, True, False, False]
    assert [t.executed_N.tolist() for t in stepwise] == [t.executed_N.tolist() for t in plain]
    assert sorted(demos) == [0, 4, 5]


def test_closing_it_closes_the_simulators():
    closed = []

    class Closes(ToyPool):
        def close(self):
            closed.append(self)

    inner = Closes()
    StepwisePool(inner, "toy", lambda episode, demo: None).close()
    assert closed == [inner]
