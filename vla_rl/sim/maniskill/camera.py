"""A ManiSkill camera, with what perturbations change of a scene: where it stands, and the lights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

FORWARD = np.array([1.0, 0.0, 0.0])  # along which SAPIEN's cameras look and its directional lights shine


class ManiSkillCamera:
    """Draws a scene with one of ManiSkill's own cameras.

    `model` holds the scene's camera and lights under the names of MuJoCo's model, as arrays that may be changed in
    place: positions in m, quaternions wxyz, directions, colours. They act in the next `update`.

    Args:
        env: ManiSkill's environment, unwrapped.
        name: of its camera.
    """

    id = 0  # of the camera in `model`

    def __init__(self, env: Any, name: str) -> None:
        self._scene, self._sensor = env.scene, env._sensors[name]
        (scene,) = env.scene.sub_scenes
        self._camera = self._sensor.camera
        self._render = scene.render_system
        self._lights = sorted(self._render.lights, key=lambda light: light.entity.per_scene_id)
        pose = self._camera.get_local_pose().sp
        none_N3 = np.zeros((len(self._lights), 3))
        self.model = SimpleNamespace(
            cam_pos=np.array([pose.p], dtype=np.float64),
            cam_quat=np.array([pose.q], dtype=np.float64),
            light_dir=np.array([_direction(light.entity_pose.q) for light in self._lights]),
            light_diffuse=np.array([light.color[:3] for light in self._lights], dtype=np.float64),
            light_ambient=none_N3,  # SAPIEN's lights have one colour; its ambient light is the headlight's
            light_specular=none_N3.copy(),
            vis=SimpleNamespace(
                headlight=SimpleNamespace(
                    ambient=np.array(self._render.ambient_light[:3], dtype=np.float64),
                    diffuse=np.zeros(3),
                    specular=np.zeros(3),
                )
            ),
        )
        self._applied: tuple[bytes, ...] = self._look()

    def update(self) -> None:
        """Draw where everything is now; `read` gets the picture."""
        if self._look() != self._applied:
            self._apply()
        self._scene.update_render(update_sensors=True, update_human_render_cameras=False)
        self._sensor.capture()

    def read(self) -> np.ndarray:
        """The picture of the last `update`: uint8 [px, px, 3], upright, top row first."""
        seen = self._sensor.get_obs(rgb=True, depth=False, position=False, segmentation=False)
        return seen["rgb"][0].numpy()

    def close(self) -> None:
        """SAPIEN frees the scene with its last user."""

    def _look(self) -> tuple[bytes, ...]:
        model = self.model
        changeable = (model.cam_pos, model.cam_quat, model.light_dir, model.light_diffuse, model.vis.headlight.ambient)
        return tuple(array.tobytes() for array in changeable)

    def _apply(self) -> None:
        import sapien

        model = self.model
        self._camera.set_local_pose(sapien.Pose(model.cam_pos[0], model.cam_quat[0]))
        for light, towards_3, colour_3 in zip(self._lights, model.light_dir, model.light_diffuse, strict=True):
            light.color = colour_3
            light.entity_pose = sapien.Pose(light.entity_pose.p, sapien.math.shortest_rotation(FORWARD, towards_3))
        self._render.ambient_light = model.vis.headlight.ambient
        self._applied = self._look()


def _direction(quaternion_4: np.ndarray) -> np.ndarray:
    """Where a wxyz quaternion turns `FORWARD`: the first column of its rotation matrix."""
    w, x, y, z = np.asarray(quaternion_4, dtype=np.float64)
    return np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])
