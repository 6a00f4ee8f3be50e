"""One ManiSkill task as a `DecisionEnv`.

The simulator is ManiSkill's own (PhysX on the CPU) and steps as it does; observations and rewards of its own are not
asked for. A seeded reset sets everything anew, so that the same seed and commands give the same trajectory, bit for
bit, after any history and in any process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vla_rl.sim.decision import DecisionEnv
from vla_rl.sim.maniskill.camera import ManiSkillCamera
from vla_rl.sim.maniskill.tasks import TASKS, check_installed, task_index
from vla_rl.sim.maniskill.vulkan import check_vulkan

if TYPE_CHECKING:
    from vla_rl.sim.render import Camera

# `pd_ee_delta_pose`: the hand along x, y, z (1.0: 10 cm) and around them (1.0: 0.1 rad), and the gripper: positive
# closes. The numbers, and their order, are those of LIBERO and of most policies that are published.
CONTROL_MODE = "pd_ee_delta_pose"
ACTIONS = 7
PROPRIO = 9  # the arm's seven joints in rad, and how far each finger is open in m
ROBOT = "panda"
CAMERA = "base_camera"


class ManiSkillEnv(DecisionEnv):
    """One task of ManiSkill.

    `reset(options={"init_state": i})` starts the placement that ManiSkill draws from seed i; without it, from one that
    the generator of `reset(seed=...)` draws. With the option `arm_offset_rad`, float [7], the arm's joints start so far
    from where they would.

    Frames are turned by 180 degrees, as policies expect them: they turn them back. The goal of PickCube is drawn, which
    ManiSkill's own observations hide: nothing else shows a policy where to.

    Args:
        task: index, or name.
        camera_px: height and width of the frame.
        chunk_steps: most control steps in a command (50 ms each).
        horizon: control steps before truncation.
    """

    def __init__(self, task: int | str, *, camera_px: int = 128, chunk_steps: int = 8, horizon: int = 50) -> None:
        self.task = task_index(task)
        self.instruction, self.horizon = TASKS[self.task].instruction, horizon
        check_installed()
        check_vulkan()
        import gymnasium
        import mani_skill.envs  # noqa: F401 - registers the tasks

        self._env: Any = gymnasium.make(
            f"{TASKS[self.task].name}-v1",
            robot_uids=ROBOT,
            obs_mode="none",
            reward_mode="none",
            control_mode=CONTROL_MODE,
            sim_backend="physx_cpu",
            render_backend="cpu",
            sensor_configs={"width": camera_px, "height": camera_px},
        ).unwrapped
        self.cameras = cast("list[Camera]", [ManiSkillCamera(self._env, CAMERA)])
        self._set_spaces(chunk_steps=chunk_steps, actions=ACTIONS, camera_px=camera_px, images=1, proprio=PROPRIO)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        init_state, offset_rad = self._wanted_start(options)
        self._env.reset(seed=init_state)
        if offset_rad is not None:
            robot = self._env.agent.robot
            qpos_9 = robot.get_qpos()
            qpos_9[0, : len(offset_rad)] += qpos_9.new_tensor(offset_rad)
            robot.set_qpos(qpos_9)
            self._env.agent.controller.reset()  # its target is where the arm is
        self._sample()
        return self._begun()

    def _control(self, action_A: np.ndarray, *, sample: bool) -> bool:
        action_A = np.clip(action_A, -1.0, 1.0).astype(np.float32)
        action_A[-1] = -action_A[-1]  # ManiSkill's gripper opens at +1
        *_, info = self._env.step(action_A)
        if sample:
            self._sample()
        return bool(info["success"])

    def _sample(self) -> None:
        for camera in self.cameras:
            camera.update()
        self._proprio = self._env.agent.robot.get_qpos()[0].numpy().astype(np.float32)

    def _observation(self) -> dict[str, np.ndarray]:
        observation = super()._observation()
        return observation | {"frame": np.ascontiguousarray(observation["frame"][::-1, ::-1])}
