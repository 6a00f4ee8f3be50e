"""One LIBERO task as a gymnasium environment whose step is a decision: a chunk of control steps, then one frame.

Built once, then reset exactly and cheaply: the same initial state and commands give the same trajectory, bit for bit,
after any history and in any process.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_rl.checks import check_choice, check_number
from vla_rl.errors import UserError
from vla_rl.sim.decision import DecisionEnv
from vla_rl.sim.libero import suites

if TYPE_CHECKING:
    from vla_rl.sim.libero.physics.drawn import RegionSampler
    from vla_rl.sim.libero.physics.placement import PlacementSampler

ACTIONS, PROPRIO = 7, 8
SETTLE_ACTION = np.array([0.0] * 6 + [-1.0])  # stand still with an open gripper, as LIBERO's evaluation does
STEPPINGS = ("lean", "stock")
ROBOT_GEOMS = ("collision", "visual")


def check_placement_noise(suite: str, placement_noise_m: float) -> None:
    """Raise UserError unless placements with this radius can be drawn in this suite."""
    check_number("sim.placement_noise_m", placement_noise_m, 0.03, least=0, below=0.2)
    if placement_noise_m and suite != "object":
        raise UserError(
            f"placements cannot be drawn for suite {suite!r}, where instructions name places; allowed: suite object, or"
            " sim.placement_noise_m=0"
        )


def _build(suite: str, task: int, assets: str | os.PathLike) -> Any:
    """LIBERO's environment after its first reset, without cameras.

    Fixtures stand where LIBERO's own evaluation has them in its first episode (`env.seed(0); env.reset()`): they are
    drawn from numpy's global generator and are not part of the official initial states.
    """
    folder = suites.boot(assets)
    from libero.libero.envs.env_wrapper import ControlEnv
    from robosuite.utils.errors import RandomizationError

    numpy_state = np.random.get_state()
    np.random.seed(0)  # building draws once as well, and may fail
    try:
        env = ControlEnv(
            bddl_file_name=str(suites.bddl_file(suite, task)),
            use_camera_obs=False,
            has_offscreen_renderer=False,
            ignore_done=True,
        )
        env.seed(0)
        env.reset()
    except RandomizationError as error:
        raise UserError(
            f"the objects of {suites.bddl_file(suite, task)} do not fit into their regions without overlap: make the "
            "regions larger"
        ) from error
    except (FileNotFoundError, ValueError) as error:  # MuJoCo's is a ValueError with the file's name in its text
        missing = _missing_file(error, folder)
        if missing is None:
            raise
        raise UserError(
            f"assets folder {str(folder)!r} has no {missing}, which task {task} of suite {suite!r} needs; fix: copy or"
            " download the folder again, or sim.assets=standin"
        ) from error
    finally:
        np.random.set_state(numpy_state)
    return env.env


def _missing_file(error: Exception, folder: Path) -> str | None:
    """Path within the assets of the file that an error says is missing; None where it is about something else."""
    if isinstance(error, FileNotFoundError):
        paths = [str(error.filename or "")]
    else:
        paths = re.findall(r"'([^']+)'", str(error))
    for path in map(os.path.normpath, paths):
        if path.startswith(f"{folder}{os.sep}") and not os.path.exists(path):
            return os.path.relpath(path, folder)
    return None


class LiberoEnv(DecisionEnv):
    """One task of a LIBERO suite.

    `reset(options={"init_state": i})` starts initial state i of the task's file, or the placement drawn from seed i:
    with `placement_noise_m > 0`, and where the task has no such file. Without it, one is drawn from the generator that
    `reset(seed=...)` seeds.
    Its option `arm_offset_rad`, float [7], is added to the arm's joints.
    `step(command)` executes the rows of float [h, 7], 1 <= h <= chunk_steps, until success or the horizon.

    Args:
        suite, task: see `vla_rl.sim.libero.suites`.
        assets: "standin", "hub" or a folder.
        camera_px: height and width of the frame.
        wrist_camera: a second picture, from the wrist, on the frame's channels 3 to 5.
        chunk_steps: most control steps in a command (50 ms each).
        horizon: control steps before truncation, the settle steps not counted; None = the suite's own.
        settle_steps: control steps of standing still that every reset ends with.
        placement_noise_m: radius of the disc around its official place in which every object is put; 0 = official.
        robot_geoms: "collision" draws the robot simplified and without shadows (fast), "visual" as LIBERO does.
        stepping: "lean" (fast) or "stock" (robosuite's own arithmetic); they agree to ~1e-14.
    """

    def __init__(
        self,
        suite: str,
        task: int,
        *,
        assets: str | os.PathLike = "standin",
        camera_px: int = 128,
        wrist_camera: bool = False,
        chunk_steps: int = 8,
        horizon: int | None = None,
        settle_steps: int = 10,
        placement_noise_m: float = 0.0,
        robot_geoms: str = "collision",
        stepping: str = "lean",
    ) -> None:
        suites.check_task(suite, task)
        check_choice("sim.stepping", stepping, STEPPINGS)
        check_choice("sim.robot_geoms", robot_geoms, ROBOT_GEOMS)
        check_placement_noise(suite, placement_noise_m)
        self.suite, self.task = suite, task
        self.instruction = suites.language(suite, task)
        self.horizon = suites.horizon(suite) if horizon is None else horizon
        self.settle_steps = settle_steps
        self.placement_noise_m = placement_noise_m
        self._states = suites.init_states(suite, task)
        self._env = _build(suite, task, assets)
        cameras = ("agentview", "robot0_eye_in_hand") if wrist_camera else ("agentview",)
        self._bind(cameras, camera_px, robot_geoms, stepping)
        self._set_spaces(
            chunk_steps=chunk_steps, actions=ACTIONS, camera_px=camera_px, images=len(cameras), proprio=PROPRIO
        )

    def _bind(self, cameras: tuple[str, ...], camera_px: int, robot_geoms: str, stepping: str) -> None:
        """Take handles into the built simulator. They stay valid because `env.reset()` is never called again."""
        from vla_rl.sim.libero.physics.reset import ResetPoint
        from vla_rl.sim.libero.physics.stepping import LeanStepper, StockStepper
        from vla_rl.sim.render import Camera, draw_robot_by_collision_geoms

        sim, robot = self._env.sim, self._env.robots[0]
        self._model, self._data = sim.model._model, sim.data._data
        self._hand_body = sim.model.body_name2id(robot.robot_model.eef_name)
        self._arm_qpos = np.array(robot._ref_joint_pos_indexes)
        self._grip_site, self._finger_qpos = robot.eef_site_id, robot._ref_gripper_joint_pos_indexes
        self._reset_point = ResetPoint(self._env)
        self._check_states()
        self._stock = StockStepper(self._env)
        self._stepper = LeanStepper(self._env) if stepping == "lean" else self._stock
        if robot_geoms == "collision":
            draw_robot_by_collision_geoms(self._model)
        light = robot_geoms == "collision"
        self.cameras = [Camera(self._model, self._data, name, camera_px, light=light) for name in cameras]
        if self.placement_noise_m > 0:
            self._placements = self._placement_sampler()
        if self._states is None:
            self._regions = self._region_sampler()

    # ------------------------------------------------------------------------------------------------- gymnasium

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        states = 2**31 if self._states is None else len(self._states)
        init_state, offset_rad = self._wanted_start(options, states)
        state = self._initial_state(init_state)
        if offset_rad is not None:
            state = state.copy()
            state[1 + self._arm_qpos] += offset_rad
        self._reset_point.restore(state)
        self._sample()
        for step in range(self.settle_steps):
            # The first step after a reset reads the controller's arrays of the reset pose, as LIBERO's does.
            stepper = self._stock if step == 0 else self._stepper
            stepper.step(SETTLE_ACTION, self._sample if step == self.settle_steps - 1 else None)
        self._fresh = self.settle_steps == 0
        return self._begun()

    def _control(self, action_A: np.ndarray, *, sample: bool) -> bool:
        stepper = self._stock if self._fresh else self._stepper
        self._fresh = False
        stepper.step(action_A, self._sample if sample else None)
        return bool(self._env._check_success())

    def _initial_state(self, init_state: int) -> np.ndarray:
        if self.placement_noise_m > 0:
            return self._placements.draw(self.suite, self.task, init_state)
        if self._states is None:
            return self._regions.draw(init_state)
        count = len(self._states)
        if not 0 <= init_state < count:
            raise UserError(
                f"no official initial state {init_state} for task {self.task} of suite {self.suite!r}; allowed:"
                f" 0..{count - 1}, or any seed with placements drawn, e.g. sim.placement_noise_m=0.03"
            )
        return self._states[init_state]

    def _check_states(self) -> None:
        """Raise UserError unless the file of initial states is of a task with as many joints."""
        needed = 1 + self._model.nq + self._model.nv
        if self._states is not None and self._states.shape[1] != needed:
            raise UserError(
                f"the initial states of task {self.task} of suite {self.suite!r} have {self._states.shape[1]} numbers, "
                f"its scene needs {needed}: they are another task's; take the file away, and placements are drawn"
            )

    def _region_sampler(self) -> RegionSampler:
        from vla_rl.sim.libero.physics.drawn import RegionSampler

        return RegionSampler(self._env)

    def _placement_sampler(self) -> PlacementSampler:
        """Moves every object but the basket."""
        from vla_rl.sim.libero.physics.placement import PlacementSampler

        assert self._states is not None, "placements are moved from those of a file"
        body, robot = self._env.obj_body_id, self._env.robots[0]
        container = self._env.object_sites_dict[self.goal_region].parent_name
        return PlacementSampler(
            self._model,
            self._states,
            bodies=[body[name] for name in self.objects if name != container],
            fixed=[body[container]],
            arm_dofs=robot._ref_joint_vel_indexes + robot._ref_gripper_joint_vel_indexes,
            radius_m=self.placement_noise_m,
        )

    def _sample(self) -> None:
        """Remember what the robot senses now: the scene to draw and the proprioception."""
        from robosuite.utils.transform_utils import quat2axisangle

        for camera in self.cameras:
            camera.update()
        wxyz = self._data.xquat[self._hand_body]
        self._proprio = np.concatenate(
            [
                self._data.site_xpos[self._grip_site],
                quat2axisangle(wxyz[[1, 2, 3, 0]]),
                self._data.qpos[self._finger_qpos],
            ]
        ).astype(np.float32)

    # ------------------------------------------------------------------------------- privileged, for a scripted expert

    @property
    def objects(self) -> list[str]:
        """Names of the movable objects."""
        return list(self._env.objects_dict)

    @property
    def target_object(self) -> str:
        """The object that the first condition of the goal is about."""
        return self._env.parsed_problem["goal_state"][0][1]

    @property
    def goal_region(self) -> str:
        """Where the first condition of the goal wants it: a region (site) or an object."""
        return self._env.parsed_problem["goal_state"][0][-1]

    def object_poses(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """name -> (position [3] in m, orientation [4] as a wxyz quaternion) in the world's frame."""
        bodies = {name: self._env.obj_body_id[name] for name in self._env.objects_dict}
        return {name: (self._data.xpos[b].copy(), self._data.xquat[b].copy()) for name, b in bodies.items()}

    def goal_position(self) -> np.ndarray:
        """Centre of the goal region, or of the goal object, [3] in m."""
        name = self.goal_region
        if name in self._env.obj_body_id:
            return self._data.xpos[self._env.obj_body_id[name]].copy()
        return self._data.site(name).xpos.copy()

    def eef_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] in m of the point between the fingertips, and the hand's wxyz quaternion [4]."""
        return self._data.site_xpos[self._grip_site].copy(), self._data.xquat[self._hand_body].copy()
