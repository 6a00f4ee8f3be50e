"""Meta-World: the same trajectories whatever happened before, in whichever process; equal to its own loop."""

from __future__ import annotations

import hashlib
import signal

import numpy as np
import pytest
import torch

from tests.integration.sim.test_pool import assert_same, command, episode, play, signaller

pytest.importorskip("metaworld", reason="the extra is missing: pip install 'vla-rl[metaworld]'")

from vla_rl.sim.demonstration import COMMAND_LEVELS, demonstrate
from vla_rl.sim.metaworld.demonstrator import MetaWorldExpertEnv
from vla_rl.sim.metaworld.env import MetaWorldEnv
from vla_rl.sim.metaworld.pool import MetaWorldPool
from vla_rl.sim.metaworld.tasks import TASKS as ALL_TASKS
from vla_rl.sim.metaworld.tasks import task_index
from vla_rl.sim.perturb.env import PerturbedEnv
from vla_rl.sim.perturb.registry import PERTURBATIONS, parse_perturbations
from vla_rl.sim.perturb.world import Scenery

# two with furniture whose place is part of the model, one with a goal that is drawn where the episode before left it
TASKS = ("button-press", "drawer-open", "push")


def commands(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (2, 8, 4)).astype(np.float32)


def digest(env: MetaWorldEnv, init_state: int, command_CLA: np.ndarray) -> str:
    """Everything an episode shows and holds."""
    seen = hashlib.sha256()
    observation, _ = env.reset(options={"init_state": init_state})
    for command_LA in [None, *command_CLA]:
        if command_LA is not None:
            observation, *_ = env.step(command_LA)
        for value in (observation["frame"], observation["proprio"], env._env.data.qpos, env._env.data.qvel):
            seen.update(np.ascontiguousarray(value).tobytes())
    return seen.hexdigest()


@pytest.mark.parametrize(
    "task", [*TASKS, *(pytest.param(t.name, marks=pytest.mark.slow) for t in ALL_TASKS if t.name not in TASKS)]
)
def test_an_episode_does_not_depend_on_what_was_before(task):
    env = MetaWorldEnv(task, camera_px=64)
    first = digest(env, 3, commands(0))
    assert digest(env, 11, commands(0)) != first
    assert digest(env, 3, commands(0)) == first
    env.close()
    fresh = MetaWorldEnv(task, camera_px=64)
    assert digest(fresh, 3, commands(0)) == first
    fresh.close()


def test_states_are_those_of_metaworlds_own_loop():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    ours = MetaWorldEnv("drawer-open", camera_px=64)
    digest(ours, 5, commands(1))
    stock = ALL_V3_ENVIRONMENTS["drawer-open-v3"]()
    stock._freeze_rand_vec, stock.seeded_rand_vec, stock._set_task_called = False, True, True
    stock._partially_observable = False
    stock.seed(5)
    stock.reset()
    for action_A in commands(1).reshape(-1, 4):
        stock.step(action_A)
    np.testing.assert_array_equal(ours._env.data.qpos, stock.data.qpos)
    np.testing.assert_array_equal(ours._env.data.qvel, stock.data.qvel)
    ours.close()


def test_an_expert_demonstrates_in_commands_of_a_few_sizes():
    env = MetaWorldExpertEnv("reach", camera_px=16, render=False)
    demo = demonstrate(env, 0, noise=0.0, hesitation=0.0, linger_steps=2, seed=1)
    again = demonstrate(env, 0, noise=0.0, hesitation=0.0, linger_steps=2, seed=1)
    env.close()
    assert demo is not None and again is not None
    assert 20 < len(demo) < 80
    assert demo.action_TA.shape[1] == 4
    assert set(demo.action_TA[:, :3].abs().unique().tolist()) <= {0.0, *torch.tensor(COMMAND_LEVELS).float().tolist()}
    assert set(demo.action_TA[:, 3].tolist()) == {-1.0}  # the hand stays open
    assert torch.equal(demo.action_TA, again.action_TA)


def test_trajectories_do_not_depend_on_workers_order_or_faults():
    tasks = [task_index(name) for name in TASKS[:2]]
    episodes = [episode(uid, task, uid // 2) for uid, task in enumerate([*tasks, *tasks])]

    def pool(workers: int) -> MetaWorldPool:
        return MetaWorldPool(tasks=TASKS[:2], horizon=24, camera_px=64, workers=workers)

    with pool(1) as one:
        expected = play(one, episodes, dims=4)
    with pool(2) as two:
        found = play(two, episodes[::-1], signaller(two, signal.SIGKILL, 2), dims=4)[::-1]
        assert two.restarts == 1
    assert [len(steps) for steps in expected] == [4] * 4  # the start, and 24 steps in chunks of 8
    assert all(steps[3][1][:3].sub(steps[0][1][:3]).norm() > 0.002 for steps in expected)  # the hand has moved (m)
    assert not torch.equal(expected[0][0][0], expected[2][0][0])  # another placement: another picture
    assert_same(found, expected)


@pytest.fixture(scope="module")
def env():
    env = MetaWorldEnv("drawer-open", camera_px=64, horizon=16)
    yield env
    env.close()


@pytest.mark.parametrize("name", ["camera_pose", "light", "initial_state"])
def test_each_perturbation_of_the_world_changes_the_picture(env, name):
    scenery = Scenery(env.cameras[0].model)
    clean, _ = env.reset(options={"init_state": 2})
    perturbed = PerturbedEnv(env, parse_perturbations([name]))
    changed, _ = perturbed.reset(seed=1, options={"init_state": 2})
    scenery.restore()
    again, _ = env.reset(options={"init_state": 2})
    assert abs(changed["frame"].astype(int) - clean["frame"]).mean() > 0.1
    moved_m = np.linalg.norm(changed["proprio"][:3] - clean["proprio"][:3])
    assert 0.005 < moved_m < 0.1 if name == "initial_state" else moved_m == 0
    assert np.array_equal(again["frame"], clean["frame"])  # nothing of it is left


def test_the_hand_starts_where_the_offset_joints_would_bring_it(env):
    straight, _ = env.reset(options={"init_state": 2})
    offset_rad = np.array([0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # the first joint turns the arm about the vertical
    turned, _ = env.reset(options={"init_state": 2, "arm_offset_rad": offset_rad})
    base_3 = env._env.data.joint("right_j0").xanchor
    before_2, after_2 = (seen["proprio"][:2] - base_3[:2] for seen in (straight, turned))
    angle = np.arctan2(after_2[1], after_2[0]) - np.arctan2(before_2[1], before_2[0])
    assert angle == pytest.approx(0.05, abs=0.005)
    assert turned["proprio"][2] == pytest.approx(straight["proprio"][2], abs=0.002)


def test_a_perturbed_episode_is_the_same_in_another_process_and_after_its_replay(env):
    planned = episode(uid=5, task=task_index("drawer-open"), init_state=3)
    options = {"tasks": ["drawer-open"], "horizon": 16, "camera_px": 64, "workers": 1}
    with MetaWorldPool(**options, perturb=list(PERTURBATIONS)) as pool:
        (found,) = play(pool, [planned], signaller(pool, signal.SIGKILL, 1), dims=4)
        assert pool.restarts == 1
    here = PerturbedEnv(env, parse_perturbations(list(PERTURBATIONS)))
    observation, _ = here.reset(seed=planned.seed, options={"init_state": planned.init_state})
    for decision, (frame_HWC, proprio_P, *_) in enumerate(found):
        if decision:
            observation, *_ = here.step(command(planned.uid, decision, 4).numpy())
        assert np.array_equal(observation["frame"], frame_HWC.numpy())
        assert torch.equal(torch.from_numpy(observation["proprio"]), proprio_P)
    assert len(found) == 3
