"""Perturbed simulators: each perturbation acts, and the same in any process, after any history and after a replay."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch

from tests.integration.sim.test_pool import command, episode, play, signaller
from vla_rl.sim.libero.env import LiberoEnv
from vla_rl.sim.libero.pool import LiberoPool
from vla_rl.sim.perturb.env import PerturbedEnv
from vla_rl.sim.perturb.registry import PERTURBATIONS, parse_perturbations
from vla_rl.sim.perturb.world import Scenery

SMALL = {"camera_px": 64, "settle_steps": 1, "horizon": 16}


@pytest.fixture(scope="module")
def env():
    env = LiberoEnv("object", 0, **SMALL)
    yield env
    env.close()


@pytest.fixture(autouse=True)
def as_built(env):
    """Each test perturbs the scene of the same environment."""
    scenery = Scenery(env.cameras[0].model)
    yield
    scenery.restore()


@pytest.mark.parametrize("name", ["camera_pose", "light", "initial_state"])
def test_each_perturbation_of_the_world_changes_the_picture(env, name):
    clean, _ = env.reset(options={"init_state": 2})
    perturbed = PerturbedEnv(env, parse_perturbations([name]))
    changed, _ = perturbed.reset(seed=1, options={"init_state": 2})
    assert abs(changed["frame"].astype(int) - clean["frame"]).mean() > 0.1
    moved = abs(changed["proprio"] - clean["proprio"]).max()
    assert moved > 1e-3 if name == "initial_state" else moved == 0  # physics sees neither camera nor light


def test_a_worker_that_is_killed_goes_on_as_if_it_had_not_been(env):
    planned = episode(uid=5, task=0, init_state=3)
    with LiberoPool(tasks=[0], **SMALL, perturb=list(PERTURBATIONS), workers=1) as pool:
        (found,) = play(pool, [planned], signaller(pool, signal.SIGKILL, 1))
        assert pool.restarts == 1
    here = PerturbedEnv(env, parse_perturbations(list(PERTURBATIONS)))  # another process, after other episodes
    observation, _ = here.reset(seed=planned.seed, options={"init_state": planned.init_state})
    for decision, (frame_HWC, proprio_P, *_) in enumerate(found):
        if decision:
            observation, *_ = here.step(command(planned.uid, decision).numpy())
        assert np.array_equal(observation["frame"], frame_HWC.numpy())
        assert torch.equal(torch.from_numpy(observation["proprio"]), proprio_P)
    assert len(found) == 3
