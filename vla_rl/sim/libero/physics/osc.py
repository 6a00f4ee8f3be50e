"""Torques of robosuite's OSC_POSE controller, compiled as a whole.

Operational-space control (Khatib 1987, "A unified approach for motion and force control of robot manipulators"):
    tau = J^T [ Lambda_x (kp e_x - kd v_x) ; Lambda_r (kp e_r - kd v_r) ] + h + N^T tau_null
with position and orientation uncoupled, Lambda = (J M^-1 J^T)^-1, h gravity and Coriolis forces, N the nullspace
projector. The pieces are robosuite's own compiled functions; around them is what it does in Python.
"""

from __future__ import annotations

import numba
import numpy as np
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error


@numba.njit(cache=True)  # workers load it from the cache: compiling takes ~10 s
def arm_torques(
    site_pos: np.ndarray,
    site_mat: np.ndarray,
    jacobians: np.ndarray,
    mass: np.ndarray,
    arm: tuple[np.ndarray, ...],
    goal: tuple[np.ndarray, np.ndarray],
    gains: tuple[np.ndarray, np.ndarray, np.ndarray],
    indices: tuple[np.ndarray, ...],
    ctrl_range: np.ndarray,
    gripper_action: np.ndarray,
    gripper_step: float,
) -> None:
    """Write one substep's arm torques and finger targets into MuJoCo's ctrl.

    Args:
        site_pos, site_mat: end effector, [3] in m and [3, 3].
        jacobians: [6, nv] of the end effector: 3 rows of position, 3 of orientation.
        mass: [nv, nv].
        arm: MuJoCo's qpos [nq], qvel [nv], qfrc_bias [nv], and ctrl [nu], which is written.
        goal: position [3], orientation [3, 3].
        gains: kp [6], kd [6], joint positions [7] that the nullspace pulls to.
        indices: of the arm's qpos, qvel and actuators, and of the fingers' actuators.
        ctrl_range: [nu, 2], limits of ctrl.
        gripper_action: [2] in [-1, 1], moved by gripper_step towards open (negative) or closed, in place.
    """
    qpos, qvel, bias, ctrl = arm
    qpos_index, qvel_index, actuators, finger_actuators = indices
    kp, kd, initial_joint = gains
    dof = len(qvel_index)
    # Memory order decides which BLAS kernel sums in which order: column-major, as robosuite's fancy indexing yields.
    jac, arm_mass = np.empty((dof, 6)).T, np.empty((dof, dof)).T
    jac_pos, jac_ori = np.empty((dof, 3)).T, np.empty((dof, 3)).T
    joint_pos, joint_vel, compensation = np.empty(dof), np.empty(dof), np.empty(dof)
    for i in range(dof):
        joint_pos[i], joint_vel[i] = qpos[qpos_index[i]], qvel[qvel_index[i]]
        compensation[i] = bias[qvel_index[i]]
        for j in range(3):
            jac[j, i] = jac_pos[j, i] = jacobians[j, qvel_index[i]]
            jac[3 + j, i] = jac_ori[j, i] = jacobians[3 + j, qvel_index[i]]
        for j in range(dof):
            arm_mass[i, j] = mass[qvel_index[i], qvel_index[j]]
    velocity, angular_velocity = np.dot(jacobians[:3], qvel), np.dot(jacobians[3:], qvel)
    _, lambda_pos, lambda_ori, nullspace = opspace_matrices(arm_mass, jac, jac_pos, jac_ori)
    force = (goal[0] - site_pos) * kp[:3] + -velocity * kd[:3]
    torque = orientation_error(goal[1], site_mat) * kp[3:] + -angular_velocity * kd[3:]
    wrench = np.concatenate((np.dot(lambda_pos, force), np.dot(lambda_ori, torque)))
    torques = np.dot(jac.T, wrench) + compensation
    torques += nullspace_torques(arm_mass, nullspace, initial_joint, joint_pos, joint_vel)
    for i in range(dof):
        low, high = ctrl_range[actuators[i]]
        ctrl[actuators[i]] = min(max(torques[i], low), high)
    for i in range(2):
        moved = gripper_action[i] + (gripper_step if i == 1 else -gripper_step)
        gripper_action[i] = min(max(moved, -1.0), 1.0)
        low, high = ctrl_range[finger_actuators[i]]
        ctrl[finger_actuators[i]] = 0.5 * (high + low) + 0.5 * (high - low) * gripper_action[i]
