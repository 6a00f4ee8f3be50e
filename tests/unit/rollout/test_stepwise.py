"""A policy's episodes with every control step seen: they are those of the plain pool."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.rollout.collect import collect
from vla_rl.rollout.plan import heldout_episodes
from vla_rl.rollout.stepwise import StepwisePool


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
