"""One control step (50 ms, 25 physics substeps) of a robosuite environment, without its observables.

`StockStepper` runs robosuite's own arithmetic. `LeanStepper` computes the same formulas with one forward pass per
substep in place of three (`mj_step1`, torques, `mj_step2`), no sensors, and the torques compiled (`osc.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np

from vla_rl.sim.libero.physics.osc import arm_torques

# After reset, set_init_state and any steps, robosuite samples its observables after this many of the 25 substeps.
SAMPLED_SUBSTEP = 24
SOLVER_TOLERANCE = 1e-14


def _substeps(robosuite_env: Any) -> int:
    return int(robosuite_env.control_timestep / robosuite_env.model_timestep)


class StockStepper:
    """robosuite's own arithmetic, in the order of its `MujocoEnv.step`."""

    def __init__(self, robosuite_env: Any) -> None:
        self._env = robosuite_env
        self._substeps = _substeps(robosuite_env)

    def step(self, action: np.ndarray, on_sample: Callable[[], None] | None = None) -> None:
        """Execute one action.

        Args:
            action: float64 [7] in [-1, 1].
            on_sample: called where LIBERO samples its observations.
        """
        env = self._env
        for substep in range(1, self._substeps + 1):
            env.sim.forward()
            env._pre_action(action, policy_step=substep == 1)
            env.sim.step()
            if on_sample is not None and substep == SAMPLED_SUBSTEP:
                on_sample()
        env._post_process()


class LeanStepper:
    """The same control step with nothing computed twice. Agrees with `StockStepper` to rounding (~1e-14 m while nothing
    is struck: contacts amplify rounding, as they do any difference).

    The first control step after a reset is not its business: the stock controller then reads its arrays of the reset
    pose. Fixed references into MuJoCo's arrays are taken once: `env.reset()` must never be called again.
    """

    def __init__(self, robosuite_env: Any) -> None:
        env = robosuite_env
        robot = env.robots[0]
        self._env, self._controller, self._gripper = env, robot.controller, robot.gripper
        self._substeps = _substeps(env)
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_SENSOR  # nobody reads them
        # The stock step solves the contacts three times per substep, each time from the last solution. One solve, from
        # less near, ends as exact only when told to (with MuJoCo's 1e-8, objects end up ~1e-9 m elsewhere).
        self._model.opt.tolerance = SOLVER_TOLERANCE
        self._site = robot.eef_site_id
        nv = self._model.nv
        self._jacobians = np.zeros((6, nv))
        self._jac_pos, self._jac_ori = self._jacobians[:3], self._jacobians[3:]
        self._mass = np.zeros((nv, nv))
        self._site_pos = self._data.site_xpos[self._site]
        self._site_mat = self._data.site_xmat[self._site].reshape(3, 3)
        self._arm = (self._data.qpos, self._data.qvel, self._data.qfrc_bias, self._data.ctrl)
        self._indices = tuple(
            np.array(index)
            for index in (
                robot._ref_joint_pos_indexes,
                robot._ref_joint_vel_indexes,
                robot._ref_joint_actuator_indexes,
                robot._ref_joint_gripper_actuator_indexes,
            )
        )
        self._ctrl_range = self._model.actuator_ctrlrange.copy()

    def step(self, action: np.ndarray, on_sample: Callable[[], None] | None = None) -> None:
        """Execute one action; see `StockStepper.step`."""
        model, data, controller = self._model, self._data, self._controller
        gripper_step = self._gripper.speed * np.sign(action[6])
        gripper_action = self._gripper.current_action.copy()
        mujoco.mj_step1(model, data)
        self._set_goal(action[:6])
        gains = (controller.kp, controller.kd, controller.initial_joint)
        goal = (controller.goal_pos, controller.goal_ori)
        for substep in range(1, self._substeps + 1):
            if substep > 1:
                mujoco.mj_step1(model, data)
            mujoco.mj_jacSite(model, data, self._jac_pos, self._jac_ori, self._site)
            mujoco.mj_fullM(model, self._mass, data.qM)
            arm_torques(
                self._site_pos,
                self._site_mat,
                self._jacobians,
                self._mass,
                self._arm,
                goal,
                gains,
                self._indices,
                self._ctrl_range,
                gripper_action,
                gripper_step,
            )
            mujoco.mj_step2(model, data)
            if on_sample is not None and substep == SAMPLED_SUBSTEP:
                on_sample()
        self._gripper.current_action = gripper_action
        self._env._post_process()

    def _set_goal(self, action: np.ndarray) -> None:
        """robosuite's own goal arithmetic, once per control step, told that the end effector's pose is up to date."""
        controller = self._controller
        controller.ee_pos, controller.ee_ori_mat = self._site_pos.copy(), self._site_mat.copy()
        controller.new_update = False
        controller.set_goal(action)
        controller.new_update = True
