"""Drawn initial states: an official one with its objects moved within a disc, collision-free and at rest.

The 50 official states of a LIBERO-Object task differ by millimetres; a policy that memorised one solves them all. Drawn
placements ask for more: same objects, same orientations, the basket and the robot where they are, everything else
uniform in a disc around its official place.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection

import mujoco
import numpy as np

from vla_rl.errors import UserError

ATTEMPTS = 100
SETTLE_S = 0.5
SLID_M = 0.01
UPRIGHT = 0.99  # |cosine| of half the angle an object has turned: 16 degrees
MOVING_M_S = 0.02


class PlacementSampler:
    """Draws placements of one task. Works on its own MjData: neither reads nor changes the simulation's state.

    Args:
        model: compiled model of the task.
        official_states: float64 [S, 1 + nq + nv]: time, qpos, qvel.
        bodies: root body of every object that moves, each on a free joint.
        fixed: root bodies of objects that stay, but must not be hit.
        arm_dofs: degrees of freedom that are held against gravity while objects settle.
        radius_m: of the disc around the official position, > 0.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        official_states: np.ndarray,
        bodies: Collection[int],
        fixed: Collection[int],
        arm_dofs: Collection[int],
        radius_m: float,
    ) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        self._states, self._radius_m = official_states, radius_m
        self._bodies, self._objects = list(bodies), {*bodies, *fixed}
        joints = model.body_jntadr[self._bodies]
        assert (model.jnt_type[joints] == mujoco.mjtJoint.mjJNT_FREE).all()
        self._qpos, self._qvel = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self._arm_dofs = np.array(arm_dofs)

    def draw(self, suite: str, task: int, seed: int) -> np.ndarray:
        """float64 [1 + nq + nv], a function of (suite, task, seed) alone."""
        if seed < 0:
            raise UserError(f"a placement's seed must not be negative, not {seed}; e.g. init_state=0")
        rng = np.random.default_rng([zlib.crc32(suite.encode()), task, seed])
        base = self._states[rng.integers(len(self._states))]
        for _ in range(ATTEMPTS):
            self._scatter(rng, base)
            if not self._touching() and self._settle():
                state = base.copy()
                state[1 : 1 + self._model.nq][self._object_qpos()] = self._data.qpos[self._object_qpos()]
                return state
        raise UserError(
            f"no collision-free placement of the objects of task {task}, suite {suite!r}, in {ATTEMPTS} attempts with"
            f" placement_noise_m={self._radius_m}; take less, e.g. sim.placement_noise_m={self._radius_m / 2:g}"
        )

    def _object_qpos(self) -> np.ndarray:
        return (self._qpos[:, None] + np.arange(7)).ravel()

    def _scatter(self, rng: np.random.Generator, base: np.ndarray) -> None:
        """Move every object uniformly within its disc."""
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = base[1 : 1 + self._model.nq]
        angle = rng.uniform(0, 2 * np.pi, len(self._bodies))
        radius_m = self._radius_m * np.sqrt(rng.uniform(size=len(self._bodies)))
        self._data.qpos[self._qpos] += radius_m * np.cos(angle)
        self._data.qpos[self._qpos + 1] += radius_m * np.sin(angle)

    def _touching(self) -> bool:
        """Two objects, or an object and the robot, touch or overlap. The static scene does not count."""
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_collision(self._model, self._data)
        # Bodies welded together count as one, those welded to the world as 0.
        pairs = self._model.body_weldid[self._model.geom_bodyid[self._data.contact.geom]].tolist()
        return any(a != b and 0 not in (a, b) and {a, b} & self._objects for a, b in pairs)

    def _settle(self) -> bool:
        """Let gravity and contacts act on the objects (official states start up to 4 cm inside the floor).

        False if one slides, falls over, is still moving or touches another afterwards.
        """
        model, data = self._model, self._data
        before = data.qpos[self._object_qpos()].reshape(-1, 7).copy()
        mujoco.mj_forward(model, data)
        for _ in range(round(SETTLE_S / model.opt.timestep)):
            data.qvel[self._arm_dofs] = 0.0
            data.qfrc_applied[self._arm_dofs] = data.qfrc_bias[self._arm_dofs]
            mujoco.mj_step(model, data)
        after = data.qpos[self._object_qpos()].reshape(-1, 7)
        slid_m = np.abs(after[:, :2] - before[:, :2]).max()
        upright = np.abs((after[:, 3:] * before[:, 3:]).sum(1)).min() > UPRIGHT
        speed_m_s = np.abs(data.qvel[self._qvel[:, None] + np.arange(3)]).max()
        return bool(slid_m < SLID_M and upright and speed_m_s < MOVING_M_S) and not self._touching()
