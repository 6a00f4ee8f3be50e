"""One Meta-World task as a `DecisionEnv`.

The simulator is Meta-World's own and steps as it does; only the renderer is ours. A reset by Meta-World resets twice:
the second time starts from a model in which the first has already put everything in its place, so that the same seed
and commands give the same trajectory, bit for bit, after any history and in any process.
"""

from __future__ import annotations

import os

import numpy as np

from vla_rl.sim.decision import DecisionEnv
from vla_rl.sim.gl import check_gl
from vla_rl.sim.metaworld.tasks import TASKS, check_installed, task_index

ACTIONS = 4  # increments of the hand along x, y, z (1.0: 1 cm), and the effort of the gripper: positive closes
PROPRIO = 4  # the hand's position in m, and how far the gripper is open: 0 closed, 1 open
LONGEST = 500  # control steps after which Meta-World's simulator stops
CAMERA = "corner2"
CAMERA_POSITION = (0.75, 0.075, 0.7)  # as published policies of MT50 see it: nearer than in Meta-World's files
SHOWN_GROUPS = (0, 1, 2)  # geoms that Meta-World's own renderer shows


class MetaWorldEnv(DecisionEnv):
    """One task of Meta-World.

    `reset(options={"init_state": i})` starts the placement of object and goal drawn from seed i; without it, from one
    that the generator of `reset(seed=...)` draws. With the option `arm_offset_rad`, float [7], the hand starts where
    the arm's joints would bring it if they were turned by so much; the joints themselves follow the hand.

    Frames have the top row first as the camera sees it, which hangs upside down: turned by 180 degrees they are what
    published policies are shown.

    Args:
        task: index in MT50, or name.
        camera_px: height and width of the frame.
        chunk_steps: most control steps in a command (12.5 ms each).
        horizon: control steps before truncation.
        light: draw without shadows, reflections and multisampling: fast.
    """

    def __init__(
        self, task: int | str, *, camera_px: int = 128, chunk_steps: int = 8, horizon: int = 100, light: bool = True
    ) -> None:
        self.task = task_index(task)
        self.instruction, self.horizon = TASKS[self.task].instruction, horizon
        check_installed()
        check_gl()
        os.environ.setdefault("LP_NUM_THREADS", "0")  # software GL on the calling thread: frames are small
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        from vla_rl.sim.render import Camera

        self._env = ALL_V3_ENVIRONMENTS[f"{TASKS[self.task].name}-v3"]()
        self._env._set_task_called = True  # what `set_task` would set, but for one placement
        self._env._partially_observable = False
        self._env._freeze_rand_vec, self._env.seeded_rand_vec = False, True
        self._hand_start_3 = np.array(self._env.hand_init_pos)
        del self._env.sawyer_observation_space  # of a hidden goal: made again when it is read
        model = self._env.model
        model.camera(CAMERA).pos = CAMERA_POSITION
        self.cameras = [Camera(model, self._env.data, CAMERA, camera_px, light=light, groups=SHOWN_GROUPS)]
        self._set_spaces(chunk_steps=chunk_steps, actions=ACTIONS, camera_px=camera_px, images=1, proprio=PROPRIO)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        import mujoco  # here: after `check_gl`

        super().reset(seed=seed)
        init_state, offset_rad = self._wanted_start(options)
        self._place(init_state, self._hand_start_3)
        if offset_rad is not None:
            self._place(init_state, self._hand_start_3 + self._hand_shift(offset_rad))
        # The goal's place in the model is set last: without this it would be drawn where the first of the two resets
        # put it, which for some tasks depends on the episode before. Touches only what is drawn.
        mujoco.mj_kinematics(self._env.model, self._env.data)
        self._sample()
        return self._begun()

    def _place(self, init_state: int, hand_3: np.ndarray) -> None:
        """Object and goal as drawn from the seed, the hand at `hand_3` (m)."""
        self._env.hand_init_pos = hand_3
        self._env.seed(init_state)
        self._state, _ = self._env.reset()

    def _hand_shift(self, offset_rad: np.ndarray) -> np.ndarray:
        """How far the hand moves (m) when the arm's joints move by `offset_rad`, float [7]."""
        import mujoco

        model, here = self._env.model, self._env.data
        there = mujoco.MjData(model)
        there.qpos[:] = here.qpos
        there.qpos[[model.joint(f"right_j{joint}").qposadr[0] for joint in range(len(offset_rad))]] += offset_rad
        mujoco.mj_kinematics(model, there)
        return there.body("hand").xpos - here.body("hand").xpos

    def _control(self, action_A: np.ndarray, *, sample: bool) -> bool:
        # as float32, in which Meta-World's own policies act
        self._state, _, _, _, info = self._env.step(np.clip(action_A, -1.0, 1.0).astype(np.float32))
        if sample:
            self._sample()
        return bool(info["success"])

    def _sample(self) -> None:
        for camera in self.cameras:
            camera.update()
        self._proprio = self._state[:PROPRIO].astype(np.float32)

    def _observation(self) -> dict[str, np.ndarray]:
        observation = super()._observation()
        return observation | {"frame": observation["frame"][::-1]}
