"""Perturbations of the simulated world that need no mesh: where the camera is, the light, how the arm starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_rl.checks import check_number
from vla_rl.sim.perturb.base import Perturbation

if TYPE_CHECKING:
    import mujoco

    from vla_rl.sim.render import Camera

ARM_JOINTS = 7


class Scenery:
    """What `CameraPose` and `Light` change of a model, as it was built. Physics reads none of it."""

    def __init__(self, model: mujoco.MjModel) -> None:
        head = model.vis.headlight
        self._changed = [
            *(model.cam_pos, model.cam_quat, model.light_dir),
            *(model.light_ambient, model.light_diffuse, model.light_specular),
            *(head.ambient, head.diffuse, head.specular),
        ]
        self._built = [array.copy() for array in self._changed]

    def restore(self) -> None:
        for array, built in zip(self._changed, self._built, strict=True):
            array[:] = built


def turned(vector_3: np.ndarray, axis_3: np.ndarray, radians: float) -> np.ndarray:
    """Rodrigues' rotation of a vector around an axis of length 1: v cos a + (k x v) sin a + k (k . v) (1 - cos a)."""
    cos, sin = math.cos(radians), math.sin(radians)
    return vector_3 * cos + np.cross(axis_3, vector_3) * sin + axis_3 * (axis_3 @ vector_3) * (1 - cos)


def quaternion_product(left_4: np.ndarray, right_4: np.ndarray) -> np.ndarray:
    """Hamilton's product of two wxyz quaternions: first the rotation `right_4`, then `left_4`."""
    w, x, v, y = left_4[0], left_4[1:], right_4[0], right_4[1:]
    return np.array([w * v - x @ y, *(w * y + v * x + np.cross(x, y))])


def direction(rng: np.random.Generator) -> np.ndarray:
    """Uniform on the sphere, [3], length 1."""
    vector_3 = rng.standard_normal(3)
    return vector_3 / np.linalg.norm(vector_3)


@dataclass(frozen=True, slots=True)
class CameraPose(Perturbation):
    """The first camera stands `metres` away from its place, in any direction, and is turned by `degrees` around any
    axis."""

    metres: float = 0.05
    degrees: float = 3.0

    def check(self) -> None:
        check_number("metres", self.metres, 0.05, least=0, most=1)
        check_number("degrees", self.degrees, 3, least=0, most=90)

    def scene(self, camera: Camera, rng: np.random.Generator) -> None:
        shift_3, axis_3, half = self.metres * direction(rng), direction(rng), math.radians(self.degrees) / 2
        camera.model.cam_pos[camera.id] += shift_3
        turn_4 = np.array([math.cos(half), *(math.sin(half) * axis_3)])
        camera.model.cam_quat[camera.id] = quaternion_product(turn_4, camera.model.cam_quat[camera.id])


@dataclass(frozen=True, slots=True)
class Light(Perturbation):
    """All lights `gain` times as bright or 1 / `gain` times, whichever is drawn, in a colour whose channels differ by
    at most `tint`, and turned by `degrees` around any axis."""

    gain: float = 1.6
    tint: float = 0.2
    degrees: float = 20.0

    def check(self) -> None:
        check_number("gain", self.gain, 1.6, least=1, most=10)
        check_number("tint", self.tint, 0.2, least=0, below=1)
        check_number("degrees", self.degrees, 20, least=0, most=90)

    def scene(self, camera: Camera, rng: np.random.Generator) -> None:
        model, head = camera.model, camera.model.vis.headlight
        gain = self.gain if rng.random() < 0.5 else 1 / self.gain
        colour_3 = gain * (1 + self.tint * (rng.random(3) - 0.5))
        lamps = (model.light_ambient, model.light_diffuse, model.light_specular)
        for lamp in (*lamps, head.ambient, head.diffuse, head.specular):
            lamp *= colour_3
        axis_3 = direction(rng)
        model.light_dir[:] = [turned(towards_3, axis_3, math.radians(self.degrees)) for towards_3 in model.light_dir]


@dataclass(frozen=True, slots=True)
class InitialState(Perturbation):
    """Every joint of the arm starts up to `degrees` from where it would, uniformly."""

    degrees: float = 3.0

    def check(self) -> None:
        check_number("degrees", self.degrees, 3, above=0, most=15)

    def start(self, options: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        limit = math.radians(self.degrees)
        return options | {"arm_offset_rad": rng.uniform(-limit, limit, ARM_JOINTS)}
