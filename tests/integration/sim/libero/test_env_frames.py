"""Frames and proprioception: what LIBERO's own environment observes, and the light way to draw the robot."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from vla_rl.sim.libero import suites
from vla_rl.sim.libero.env import SETTLE_ACTION, LiberoEnv

COMMAND = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 7))


@pytest.fixture(scope="module")
def libero_observations() -> list[dict]:
    """LIBERO's own observations after settling and after 8 control steps of task 5, rendered as its evaluation does."""
    suites.boot("standin")
    from libero.libero.envs.env_wrapper import OffScreenRenderEnv

    env = OffScreenRenderEnv(
        bddl_file_name=str(suites.bddl_file("object", 5)),
        camera_heights=128,
        camera_widths=128,
        camera_names=["agentview", "robot0_eye_in_hand"],
    )
    env.seed(0)
    env.reset()
    env.set_init_state(suites.official_init_states("object", 5)[3])
    observations = [env.step(action)[0] for action in [*[SETTLE_ACTION] * 10, *COMMAND]]
    # Give GL back while the display exists; at the interpreter's exit robosuite would complain.
    env.env.sim._render_context_offscreen.gl_ctx.free()
    return [observations[9], observations[17]]


@pytest.mark.parametrize("stepping", ["stock", "lean"])
def test_visual_mode_observes_exactly_what_libero_does(libero_observations, stepping):
    env = LiberoEnv("object", 5, robot_geoms="visual", stepping=stepping, wrist_camera=True)
    ours = [env.reset(options={"init_state": 3})[0], env.step(COMMAND)[0]]
    env.close()
    from robosuite.utils.transform_utils import quat2axisangle

    for observation, theirs in zip(ours, libero_observations, strict=True):
        images = np.concatenate([theirs["agentview_image"], theirs["robot0_eye_in_hand_image"]], axis=-1)
        difference = np.abs(observation["frame"].astype(int) - images)
        assert difference.max() <= 1  # software GL rounds a few pixels by one when framebuffers differ in size
        proprio = [
            theirs["robot0_eef_pos"],
            quat2axisangle(theirs["robot0_eef_quat"].copy()),
            theirs["robot0_gripper_qpos"],
        ]
        np.testing.assert_allclose(observation["proprio"], np.concatenate(proprio), rtol=0, atol=1e-6)  # float32


def test_light_mode_draws_the_same_scene_with_a_simpler_robot():
    frames = {}
    for robot_geoms in ("collision", "visual"):
        env = LiberoEnv("object", 0, robot_geoms=robot_geoms)
        frames[robot_geoms] = env.reset(options={"init_state": 0})[0]["frame"].astype(int)
        env.close()
    differs = np.abs(frames["collision"] - frames["visual"]).max(-1) > 40
    objects, robot = differs[:88], differs[88:]  # bottom row first: the robot hangs in the upper 40 rows
    assert objects.mean() < 0.02  # edges, which are not antialiased in light mode
    assert 0.01 < robot.mean() < 0.5


def test_light_mode_draws_few_triangles():
    env = LiberoEnv("object", 0)
    model = env._model
    drawn = np.flatnonzero(model.geom_group == 1)
    meshes = model.geom_dataid[drawn][model.geom_type[drawn] == mujoco.mjtGeom.mjGEOM_MESH]
    assert model.mesh_facenum[meshes].sum() < 20_000  # the robot's visual meshes alone are 120,000
    names = {model.geom(geom).name for geom in drawn}
    assert {"robot0_link1_collision", "gripper0_hand_collision"} <= names
    env.close()


def test_frames_of_two_environments_in_one_process_do_not_mix():
    first, second = LiberoEnv("object", 0, camera_px=64), LiberoEnv("object", 5, camera_px=128)
    alone = first.reset(options={"init_state": 0})[0]["frame"]
    second.reset(options={"init_state": 0})
    again = first.reset(options={"init_state": 0})[0]["frame"]
    np.testing.assert_array_equal(alone, again)
    second.close()
    np.testing.assert_array_equal(alone, first.reset(options={"init_state": 0})[0]["frame"])
    first.close()
    first.close()
