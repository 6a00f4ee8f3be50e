"""A scripted pick-and-place that solves LIBERO-Object from privileged poses.

`Demonstrator.action(scene)` is the whole controller: four phases and a proportional law, per control step (20 Hz,
OSC_POSE), in commands of a few sizes (`to_levels`). The gripper keeps its first orientation, pointing
down and closing along y. In LIBERO-Object every target shows y a side narrower than the gripper's opening, so only the
place of the grasp is to be found; it follows from the collision shapes (`grasp_point`, `entry_point`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from vla_rl.errors import UserError
from vla_rl.sim.demonstration import Expert, ExpertEnv, to_levels
from vla_rl.sim.libero import suites
from vla_rl.sim.libero.env import LiberoEnv

GRIPPER_OPENING_M = 0.078  # between the open pads, less the grip they need
FINGER_REACH_M = 0.020  # how far below its top a target can be gripped before the palm touches it
LOWEST_GRIP_M = 0.012  # grip point above the floor when the fingertips touch it
PALM_X_M, PALM_Y_M = 0.020, 0.105  # half the palm's thickness, less the 1 cm that objects give way, and half its width
ENTRY_SHIFTS_M = sorted(np.linspace(-0.1, 0.1, 41), key=abs)  # along x from the grasp: where the hand may come down
GAIN_PER_M = 16.0  # command per metre of error; full command (1.0) moves ~1 cm a step
CONE_SLOPE = 3.0  # while above the target: metres of extra height per metre of horizontal error beyond CONE_RADIUS_M
CONE_RADIUS_M = 0.020
HOVER_M = 0.06  # fingertips above the target's top until the cone allows less
ALIGNED_M = 0.010  # horizontal error at which the fingers may close
LOW_M = 0.015  # height error below which the hand may slide along x to the target
STRADDLED_M = 0.015  # error along y up to which the fingers then pass on both sides of the target
LANDED_M = 0.003  # height error at which the fingers may close
PRESS_M = 0.004  # the height commanded lies this much lower: the proportional law alone would settle slowly
CLOSE_STEPS = 7  # the fingers need ~5 from fully open on a thin target
LIFT_FIRST_M = 0.04  # straight up before moving sideways, out of reach of what stands beside
RIM_CLEARANCE_M = 0.03  # the target's underside above the basket's rim while it is carried
OVER_BASKET_M = 0.02  # horizontal distance of the target to the basket's centre at which it is let go
SLIPPED_M = 0.05  # a target displaced this much in the hand is lost: grasp again
DROP_STEPS = 15  # after letting go: a target not above the basket by then is grasped again
MISSED_M = 0.07  # horizontal distance to the basket's centre that means: not in it


class Phase(Enum):
    REACH = "reach"
    CLOSE = "close"
    CARRY = "carry"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Body:
    """Where an object is: its origin, and the box around its collision shapes, in world coordinates (metres)."""

    position_3: np.ndarray
    low_3: np.ndarray
    high_3: np.ndarray


@dataclass(frozen=True, slots=True)
class Scene:
    """What the demonstrator sees at a control step."""

    grip_3: np.ndarray  # the point between the fingertips
    target: Body
    basket: Body
    others: tuple[Body, ...] = ()  # what else stands around


class Demonstrator:
    """Reach over the target, close, carry it over the basket, open. One per episode.

    Where to go depends on the scene, not on the time since the start, so a disturbed arm recovers: the errors that
    noise makes are corrected in the demonstration, which is what the learner needs to see.
    """

    def __init__(self, scene: Scene) -> None:
        _check_graspable(scene.target)
        self.phase = Phase.REACH
        self._steps = 0  # in this phase, where it is timed
        self._hold_3 = np.zeros(3)  # where CLOSE and OPEN keep the hand
        self._grasp_3 = np.zeros(3)  # target relative to the hand when it was grasped
        self._floor_z = 0.0  # underside of the target when it was grasped

    def action(self, scene: Scene) -> np.ndarray:
        """float64 [7] in [-1, 1]: xyz and axis-angle increments, gripper (-1 opens, +1 closes)."""
        self._advance(scene)
        if self.phase is Phase.REACH:
            return _command(_reach_error(scene), gripper=-1.0)
        if self.phase is Phase.CARRY:
            return _command(_carry_error(scene, self._floor_z), gripper=1.0)
        self._steps += 1
        return _command(self._hold_3 - scene.grip_3, gripper=1.0 if self.phase is Phase.CLOSE else -1.0)

    def _advance(self, scene: Scene) -> None:
        grip_3, target_3 = scene.grip_3, scene.target.position_3
        away_m = _horizontal(scene.basket.position_3 - target_3)
        if self.phase is Phase.REACH and _at_grasp(scene):
            self._enter(Phase.CLOSE, grip_3)
        elif self.phase is Phase.CLOSE and self._steps >= CLOSE_STEPS:
            self._enter(Phase.CARRY, grip_3)
            self._grasp_3, self._floor_z = target_3 - grip_3, float(scene.target.low_3[2])
        elif self.phase is Phase.CARRY and np.linalg.norm(target_3 - grip_3 - self._grasp_3) > SLIPPED_M:
            self._enter(Phase.REACH, grip_3)
        elif self.phase is Phase.CARRY and away_m < OVER_BASKET_M:
            self._enter(Phase.OPEN, grip_3)
        elif self.phase is Phase.OPEN and self._steps >= DROP_STEPS and away_m > MISSED_M:
            self._enter(Phase.REACH, grip_3)

    def _enter(self, phase: Phase, grip_3: np.ndarray) -> None:
        self.phase, self._steps, self._hold_3 = phase, 0, grip_3.copy()


def grasp_point(target: Body) -> np.ndarray:
    """Where the point between the fingertips has to be, [3] in m: the middle, as deep as palm and floor allow."""
    return np.array([*target.position_3[:2], max(target.high_3[2] - FINGER_REACH_M, LOWEST_GRIP_M)])


def entry_point(scene: Scene) -> np.ndarray:
    """Where the hand comes down, [3] in m: at the grasp, or beside it along x where the palm would land on something.

    The fingers close along y, so they can slide along x to the grasp, and the palm pushes away what it would have hit.
    """
    grasp_3 = grasp_point(scene.target)
    for shift_m in ENTRY_SHIFTS_M:
        entry_3 = grasp_3 + np.array([shift_m, 0.0, 0.0])
        if not _palm_hits(entry_3, scene.others):
            return entry_3
    return grasp_3


def _palm_hits(point_3: np.ndarray, others: tuple[Body, ...]) -> bool:
    """Does the palm reach over something too tall for it?"""
    palm_2 = np.array([PALM_X_M, PALM_Y_M])
    low_2, high_2 = point_3[:2] - palm_2, point_3[:2] + palm_2
    palm_z = point_3[2] + FINGER_REACH_M
    return any(
        (body.low_3[:2] < high_2).all() and (body.high_3[:2] > low_2).all() and body.high_3[2] > palm_z
        for body in others
    )


def _check_graspable(target: Body) -> None:
    width_m = float(target.high_3[1] - target.low_3[1])
    if width_m > GRIPPER_OPENING_M:
        raise UserError(
            f"the demonstrator cannot grasp a target {width_m:.3f} m wide along y, only up to {GRIPPER_OPENING_M} m, "
            "as all of the object suite are: suite=object"
        )


def _horizontal(vector_3: np.ndarray) -> float:
    return float(np.linalg.norm(vector_3[:2]))


def _at_grasp(scene: Scene) -> bool:
    error_3 = grasp_point(scene.target) - scene.grip_3
    return _horizontal(error_3) < ALIGNED_M and -error_3[2] < LANDED_M


def _reach_error(scene: Scene) -> np.ndarray:
    """Down a cone above the entry: the lower, the better aligned, so that the fingers never push the target over."""
    grasp_3, entry_3 = grasp_point(scene.target), entry_point(scene)
    error_3 = grasp_3 - scene.grip_3
    beside = abs(error_3[1]) < STRADDLED_M and abs(error_3[0]) < abs(entry_3[0] - grasp_3[0]) + STRADDLED_M
    if -error_3[2] < LOW_M and beside:
        return error_3 - [0.0, 0.0, PRESS_M]
    error_3 = entry_3 - scene.grip_3
    cone_m = CONE_SLOPE * max(0.0, _horizontal(error_3) - CONE_RADIUS_M)
    height = min(grasp_3[2] + cone_m, scene.target.high_3[2] + HOVER_M)
    error_3[2] = height - PRESS_M - scene.grip_3[2]
    return error_3


def _carry_error(scene: Scene, floor_z: float) -> np.ndarray:
    """Up, then towards the basket while still rising. Judged by the target, wherever the fingers hold it."""
    error_3 = scene.basket.position_3 - scene.target.position_3
    if scene.target.low_3[2] < floor_z + LIFT_FIRST_M:
        error_3[:2] = 0.0
    error_3[2] = scene.basket.high_3[2] + RIM_CLEARANCE_M - scene.target.low_3[2]
    return error_3


def _command(error_3: np.ndarray, gripper: float) -> np.ndarray:
    """Proportional in position, to the nearest level; x and y are limited together before, for a straighter path."""
    command = np.zeros(7)
    command[:3] = GAIN_PER_M * error_3
    command[:2] /= max(1.0, _horizontal(command))
    command[:3] = to_levels(command[:3])
    command[6] = gripper
    return command


class DemonstrationEnv(ExpertEnv, LiberoEnv):
    """A `LiberoEnv` that shows the demonstrator where things are."""

    def __init__(self, suite: str, task: int, **options: Any) -> None:
        problem = suites.problem(suite, task)
        match problem.goal:
            case (("in", _, place),) if problem.objects.get(place.removesuffix("_contain_region")) == "basket":
                pass
            case _:
                raise UserError(
                    f"the demonstrator puts one object in a basket, as in the object suite; task {task} of suite "
                    f"{suite!r} is another: suite=object"
                )
        super().__init__(suite, task, **options)

    def expert(self) -> Expert:
        demonstrator = Demonstrator(self.scene())
        return lambda: demonstrator.action(self.scene())

    def scene(self) -> Scene:
        """What `Demonstrator.action` reads, at the state the last reset or step left."""
        basket_body = self._model.site(self.goal_region).bodyid[0]
        ids = self._env.obj_body_id
        bodies = {name: self._body(ids[name], position_3) for name, (position_3, _) in self.object_poses().items()}
        return Scene(
            grip_3=self.eef_pose()[0],
            target=bodies.pop(self.target_object),
            basket=self._body(basket_body, self.goal_position()),
            others=tuple(bodies.values()),
        )

    def _body(self, body: int, position_3: np.ndarray) -> Body:
        """The box around the collision shapes of `body` and of everything fixed to it."""
        model, data = self._model, self._data
        collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        geoms = np.flatnonzero(collides & (model.body_weldid[model.geom_bodyid] == model.body_weldid[body]))
        rotation_G33 = data.geom_xmat[geoms].reshape(-1, 3, 3)
        centre_G3, half_G3 = model.geom_aabb[geoms, :3], model.geom_aabb[geoms, 3:]
        middle_G3 = data.geom_xpos[geoms] + np.einsum("gij,gj->gi", rotation_G33, centre_G3)
        reach_G3 = np.einsum("gij,gj->gi", np.abs(rotation_G33), half_G3)
        return Body(position_3, (middle_G3 - reach_G3).min(0), (middle_G3 + reach_G3).max(0))
