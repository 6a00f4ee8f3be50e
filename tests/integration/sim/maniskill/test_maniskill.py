"""ManiSkill: the same trajectories whatever happened before, in whichever process; equal to its own loop."""

from __future__ import annotations

import hashlib
import signal

import numpy as np
import pytest
import torch

from tests.integration.sim.test_pool import command, episode, play, signaller
from vla_rl.errors import UserError
from vla_rl.sim.maniskill.env import CAMERA, CONTROL_MODE, ManiSkillEnv
from vla_rl.sim.maniskill.pool import ManiSkillPool
from vla_rl.sim.maniskill.tasks import TASKS
from vla_rl.sim.maniskill.vulkan import check_vulkan
from vla_rl.sim.perturb.env import PerturbedEnv
from vla_rl.sim.perturb.registry import PERTURBATIONS, parse_perturbations

pytest.importorskip("mani_skill", reason="the extra is missing: pip install 'vla-rl[maniskill]'")
try:
    check_vulkan()
except UserError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")  # ManiSkill and its packages warn of what they use themselves


def commands(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (2, 8, 7)).astype(np.float32)


def state(env: ManiSkillEnv) -> np.ndarray:
    """Everything that PhysX holds of the arm and the objects."""
    return env._env.get_state()[0].numpy()


def digest(env: ManiSkillEnv, init_state: int, command_CLA: np.ndarray) -> str:
    """Everything an episode shows and holds."""
    seen = hashlib.sha256()
    observation, _ = env.reset(options={"init_state": init_state})
    for command_LA in [None, *command_CLA]:
        if command_LA is not None:
            observation, *_ = env.step(command_LA)
        for value in (observation["frame"], observation["proprio"], state(env)):
            seen.update(np.ascontiguousarray(value).tobytes())
    return seen.hexdigest()


@pytest.fixture(scope="module", params=[task.name for task in TASKS])
def env(request):
    return ManiSkillEnv(request.param, camera_px=64, horizon=16)


@pytest.fixture(scope="module")
def pick():
    return ManiSkillEnv("PickCube", camera_px=64, horizon=16)


def test_an_episode_does_not_depend_on_what_was_before(env):
    first = digest(env, 3, commands(0))
    assert digest(env, 11, commands(0)) != first
    assert digest(env, 3, commands(0)) == first
    assert digest(ManiSkillEnv(env.task, camera_px=64, horizon=16), 3, commands(0)) == first


def test_states_and_pictures_are_those_of_maniskills_own_loop(env):
    import gymnasium

    stock = gymnasium.make(
        f"{TASKS[env.task].name}-v1",
        robot_uids="panda",
        obs_mode="rgb",
        control_mode=CONTROL_MODE,
        render_backend="cpu",
        sensor_configs={"width": 64, "height": 64},
    ).unwrapped
    for goal in stock._hidden_objects:  # of PickCube, which is drawn here
        goal.show_visual()
    stock._hidden_objects.clear()
    stock.reset(seed=5)
    ours, _ = env.reset(options={"init_state": 5})
    for command_LA in commands(1):
        ours, *_ = env.step(command_LA)
        for action_A in command_LA * np.float32([1, 1, 1, 1, 1, 1, -1]):
            theirs, *_ = stock.step(action_A)
    np.testing.assert_array_equal(state(env), stock.get_state()[0].numpy())
    picture = theirs["sensor_data"][CAMERA]["rgb"][0].numpy()
    np.testing.assert_array_equal(ours["frame"][::-1, ::-1], picture)
    np.testing.assert_array_equal(ours["proprio"], theirs["agent"]["qpos"][0].numpy())


def test_a_positive_gripper_closes_and_the_hand_goes_where_it_is_sent(pick):
    start, _ = pick.reset(options={"init_state": 0})
    before_m = pick._env.agent.tcp_pose.p[0].numpy().copy()
    still_and_closed, *_ = pick.step(np.tile([0, 0, 0, 0, 0, 0, 1.0], (8, 1)))
    assert start["proprio"][7:].min() > 0.035 and still_and_closed["proprio"][7:].max() < 0.005
    pick.step(np.tile([0, 0, 0.2, 0, 0, 0, 1.0], (8, 1)))
    moved_m = pick._env.agent.tcp_pose.p[0].numpy() - before_m
    assert moved_m[2] > 0.05 and abs(moved_m[:2]).max() < 0.02


@pytest.mark.parametrize("name", ["camera_pose", "light", "initial_state"])
def test_each_perturbation_of_the_world_changes_the_picture_and_leaves_nothing(pick, name):
    clean, _ = pick.reset(options={"init_state": 2})
    perturbed = PerturbedEnv(pick, parse_perturbations([name]))
    changed, _ = perturbed.reset(seed=1, options={"init_state": 2})
    perturbed._scenery.restore()
    again, _ = pick.reset(options={"init_state": 2})
    assert abs(changed["frame"].astype(int) - clean["frame"]).mean() > 0.5
    turned_rad = abs(changed["proprio"][:7] - clean["proprio"][:7])
    limit_rad = np.deg2rad(3)
    assert 0.01 < turned_rad.max() <= limit_rad + 1e-6 if name == "initial_state" else turned_rad.max() == 0
    assert np.array_equal(again["frame"], clean["frame"])


def test_an_arm_that_starts_elsewhere_stays_there(pick):
    pick.reset(options={"init_state": 2, "arm_offset_rad": np.array([0.2, 0, 0, 0, 0, 0, 0])})
    started = pick._env.agent.robot.get_qpos()[0, 0].item()
    pick.step(np.tile([0, 0, 0, 0, 0, 0, -1.0], (8, 1)))
    assert pick._env.agent.robot.get_qpos()[0, 0].item() == pytest.approx(started, abs=0.01)


def test_episodes_do_not_depend_on_workers_order_or_faults(pick):
    """Perturbed, so that what is drawn for an episode is compared as well."""
    here = PerturbedEnv(pick, parse_perturbations(list(PERTURBATIONS)))
    episodes = [episode(uid, pick.task, init_state=uid) for uid in range(3)]
    options = {"tasks": [pick.task], "horizon": 16, "camera_px": 64, "workers": 2}
    with ManiSkillPool(**options, perturb=list(PERTURBATIONS)) as pool:
        found = play(pool, episodes[::-1], signaller(pool, signal.SIGKILL, 2))[::-1]
        assert pool.restarts == 1
    for planned, steps in zip(episodes, found, strict=True):
        observation, _ = here.reset(seed=planned.seed, options={"init_state": planned.init_state})
        assert [executed for *_, executed, _ in steps] == [0, 8, 8]
        for decision, (frame_HWC, proprio_P, *_) in enumerate(steps):
            if decision:
                observation, *_ = here.step(command(planned.uid, decision).numpy())
            assert np.array_equal(observation["frame"], frame_HWC.numpy())
            assert torch.equal(torch.from_numpy(observation["proprio"]), proprio_P)
    here._scenery.restore()
