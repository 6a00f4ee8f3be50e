"""Returning to an initial state exactly without rebuilding: what `env.reset()` leaves behind, restored at will.

LIBERO's own path is `env.reset()` (recompiles the model, ~1 s) then `set_init_state`. The state vector holds time, qpos
and qvel only; the operational-space controller keeps its goal, Jacobians and mass matrix as of the robot's reset pose,
and its first control step reads them. They, the gripper's command and MuJoCo's warm start are part of the state.
"""

from __future__ import annotations

import copy
from typing import Any

import mujoco
import numpy as np


class ResetPoint:
    """The state right after the one `env.reset()`; restoring it makes an episode independent of those before it.

    Args:
        robosuite_env: freshly reset; its sim and robot objects must never be replaced (no further `env.reset()`).
    """

    def __init__(self, robosuite_env: Any) -> None:
        self._env = robosuite_env
        robot = robosuite_env.robots[0]
        self._controller = {
            name: copy.deepcopy(value)
            for name, value in vars(robot.controller).items()
            if value is None or isinstance(value, (bool, int, float, np.ndarray))
        }
        self._gripper_action = copy.deepcopy(robot.gripper.current_action)
        self._warm_start = robosuite_env.sim.data.qacc_warmstart.copy()
        self._site_rgba = robosuite_env.sim.model.site_rgba.copy()

    def restore(self, state: np.ndarray) -> None:
        """Set time, qpos, qvel from `state` (float64 [1 + nq + nv]) and everything else as it was after the reset."""
        env = self._env
        sim, robot = env.sim, env.robots[0]
        mujoco.mj_resetData(sim.model._model, sim.data._data)  # no ctrl, no forces
        sim.data.qacc_warmstart[:] = self._warm_start
        sim.model.site_rgba[:] = self._site_rgba
        vars(robot.controller).update(copy.deepcopy(self._controller))
        robot.gripper.current_action = copy.deepcopy(self._gripper_action)
        env.timestep, env.cur_time, env.done = 0, 0, False
        sim.set_state_from_flattened(state)
        sim.forward()
        env._check_success()  # as LIBERO's set_init_state does: some predicates switch a light on
        env._post_process()
