"""Resetting without rebuilding: equal to LIBERO's own path, whatever happened before, in any process. All bitwise."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from vla_rl.errors import UserError
from vla_rl.sim.libero import suites
from vla_rl.sim.libero.env import SETTLE_ACTION, LiberoEnv

TASKS = range(10)


def commands(seed: int, chunks: int, scale: float = 0.5) -> np.ndarray:
    command_CLA = np.random.default_rng(seed).uniform(-scale, scale, (chunks, 8, 7)).astype(np.float32)
    command_CLA[:, :, 2] -= 0.3  # downwards, so that the hand meets objects
    return command_CLA


def state(sim) -> np.ndarray:
    return np.concatenate([sim.data.qpos, sim.data.qvel, sim.data.qacc_warmstart])


def play(env: LiberoEnv, init_state: int, command_CLA: np.ndarray) -> bytes:
    """Everything an episode shows, as one digest."""
    digest = hashlib.sha256()
    observation, _ = env.reset(options={"init_state": init_state})
    for command_LA in [None, *command_CLA]:
        if command_LA is not None:
            observation, *_ = env.step(command_LA)
        digest.update(observation["frame"].tobytes() + observation["proprio"].tobytes() + state(env._env.sim).tobytes())
    return digest.hexdigest()


def libero_episode(suite: str, task: int, init_state: int, command_CLA: np.ndarray) -> np.ndarray:
    """The final state by LIBERO's own code: build, seed, reset, set_init_state, settle, step; nothing of ours."""
    suites.boot("standin")
    from libero.libero.envs.env_wrapper import ControlEnv

    env = ControlEnv(
        bddl_file_name=str(suites.bddl_file(suite, task)), use_camera_obs=False, has_offscreen_renderer=False
    )
    env.seed(0)
    env.reset()
    env.set_init_state(suites.official_init_states(suite, task)[init_state])
    for action in [*[SETTLE_ACTION] * 10, *command_CLA.reshape(-1, 7).astype(np.float64)]:
        env.step(action)
    final = state(env.sim)
    env.close()
    return final


@pytest.mark.no_cover  # the same lines for every task
@pytest.mark.parametrize("task", TASKS)
def test_reset_after_any_history_equals_liberos_own_path(task):
    env = LiberoEnv("object", task, stepping="stock")
    env.reset(options={"init_state": 7})
    for command_LA in commands(seed=1, chunks=2, scale=1.0):
        env.step(command_LA)
    env.reset(options={"init_state": 3})
    command_CLA = commands(seed=2, chunks=1)
    for command_LA in command_CLA:
        env.step(command_LA)
    ours = state(env._env.sim)
    env.close()
    np.testing.assert_array_equal(ours, libero_episode("object", task, 3, command_CLA))


@pytest.fixture(scope="module")
def env():
    env = LiberoEnv("object", 0)
    yield env
    env.close()


@pytest.mark.parametrize("settle_steps", [0, 10])
def test_same_state_and_commands_give_the_same_episode_after_any_history(env, settle_steps):
    env.settle_steps = settle_steps
    first = play(env, 3, commands(seed=0, chunks=4))
    play(env, 9, commands(seed=1, chunks=6, scale=1.0))
    assert play(env, 3, commands(seed=0, chunks=4)) == first
    assert play(env, 4, commands(seed=0, chunks=4)) != first
    env.settle_steps = 10


def test_same_episode_in_another_process(env):
    script = (
        "from tests.integration.sim.libero.test_env_reset import *\n"
        "env = LiberoEnv('object', 0)  # still open when the interpreter exits\n"
        "print(play(env, 3, commands(seed=0, chunks=4)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == play(env, 3, commands(seed=0, chunks=4))
    assert "Error" not in done.stderr, done.stderr  # also at the interpreter's exit, where EGL likes to complain


def test_building_leaves_numpys_global_generator_alone():
    np.random.seed(5)
    LiberoEnv("object", 0).close()
    assert np.random.randint(1000) == 867  # np.random.seed(5); np.random.randint(1000)


def test_unknown_initial_state_is_refused(env):
    with pytest.raises(UserError, match=r"no official initial state 50.*0\.\.49.*sim\.placement_noise_m=0\.03"):
        env.reset(options={"init_state": 50})
