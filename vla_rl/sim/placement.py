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

TRIES_PER_OBJECT = 50
RESTARTS = 40
SETTLE_S = 0.3
MOVED_M = 0.01  # a scene that moves an object further than this while settling was not stable
MOVING_M_S = 0.02  # speed above which an object is not at rest


class PlacementSampler:
    """Draws placements of one task. Works on its own MjData: neither reads nor changes the simulation's state.

    Args:
        model: compiled model of the task.
        official_states: float64 [S, 1 + nq + nv]: time, qpos, qvel.
        bodies: root body of every object that moves, each on a free joint; the first is placed first.
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
        self._bodies, self._fixed = list(bodies), set(fixed)
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
        for _ in range(RESTARTS):
            if self._scatter(rng, base) and self._settle():
                state = base.copy()
                state[1 : 1 + self._model.nq][self._object_qpos()] = self._data.qpos[self._object_qpos()]
                return state
        raise UserError(
            f"no collision-free placement of the objects of task {task}, suite {suite!r}, in {RESTARTS} attempts with"
            f" placement_noise_m={self._radius_m}; take a smaller one, e.g. sim.placement_noise_m=0.05"
        )

    def _object_qpos(self) -> np.ndarray:
        return (self._qpos[:, None] + np.arange(7)).ravel()

    def _scatter(self, rng: np.random.Generator, base: np.ndarray) -> bool:
        """Move one object after the other; each avoids those before it. False if one finds no place."""
        model, data = self._model, self._data
        mujoco.mj_resetData(model, data)
        data.qpos[:] = base[1 : 1 + model.nq]
        placed = set(self._fixed)
        for body, address in zip(self._bodies, self._qpos, strict=True):
            official = data.qpos[address : address + 2].copy()
            for _ in range(TRIES_PER_OBJECT):
                angle, radius = rng.uniform(0, 2 * np.pi), self._radius_m * np.sqrt(rng.uniform())
                data.qpos[address : address + 2] = official + radius * np.array([np.cos(angle), np.sin(angle)])
                if not self._hits(body, placed):
                    placed.add(body)
                    break
            else:
                return False
        return True

    def _hits(self, body: int, others: set[int]) -> bool:
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_collision(self._model, self._data)
        roots = self._model.body_rootid[self._model.geom_bodyid[self._data.contact.geom]]
        return any(body in pair and (pair[0] in others or pair[1] in others) for pair in roots.tolist())

    def _settle(self) -> bool:
        """Let gravity act on the objects. False if one falls over, slides or touches another."""
        model, data = self._model, self._data
        before = data.qpos[self._object_qpos()].reshape(-1, 7)[:, :3].copy()
        mujoco.mj_forward(model, data)
        for _ in range(round(SETTLE_S / model.opt.timestep)):
            data.qvel[self._arm_dofs] = 0.0
            data.qfrc_applied[self._arm_dofs] = data.qfrc_bias[self._arm_dofs]
            mujoco.mj_step(model, data)
        after = data.qpos[self._object_qpos()].reshape(-1, 7)[:, :3]
        speed = np.abs(data.qvel[self._qvel[:, None] + np.arange(3)]).max()
        touching = any(self._hits(body, {*self._bodies, *self._fixed} - {body}) for body in self._bodies)
        return not touching and speed < MOVING_M_S and np.abs(after - before).max() < MOVED_M
