"""One fixed camera, drawn off-screen into a uint8 array, in the orientation of LIBERO's own observations."""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import weakref
from collections.abc import Collection

import mujoco
import numpy as np

ROBOT_GEOMS = ("collision", "visual")
_ROBOT_PREFIXES = ("robot0_", "gripper0_", "mount0_")
_COLLISION, _VISUAL, _HIDDEN = 0, 1, 5  # robosuite's geom groups; 5 is one that nobody uses
ROBOSUITE_SHOWN = (_VISUAL, 2)  # the groups that its own renderer shows
_LINK_RGBA, _FINGER_RGBA = (0.85, 0.87, 0.9, 1.0), (0.25, 0.25, 0.28, 1.0)


def draw_robot_by_collision_geoms(model: mujoco.MjModel) -> None:
    """Show the robot by its collision geoms (few vertices) and hide its visual meshes; everything else is untouched.

    Edits groups and colours of the robot's geoms, which physics does not read.
    """
    for geom in range(model.ngeom):
        body = model.body(model.geom_bodyid[geom]).name
        if not body.startswith(_ROBOT_PREFIXES):
            continue
        if model.geom_group[geom] == _VISUAL:
            model.geom_group[geom] = _HIDDEN
        elif model.geom_group[geom] == _COLLISION:
            model.geom_group[geom] = _VISUAL
            model.geom_matid[geom] = -1
            model.geom_rgba[geom] = _FINGER_RGBA if body.startswith("gripper0_") else _LINK_RGBA


class Camera:
    """Renders one camera of a model.

    `update` takes a snapshot of the scene, `read` draws the last snapshot: LIBERO samples its image in the middle of a
    control step, and drawing is the expensive half.

    Args:
        px: height and width of the frame.
        light: no shadows, reflections or multisampling. They are most of the cost of software GL.
        groups: groups of geoms that are shown.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        name: str,
        px: int,
        *,
        light: bool,
        groups: Collection[int] = ROBOSUITE_SHOWN,
    ) -> None:
        backend = importlib.import_module(f"mujoco.{os.environ['MUJOCO_GL']}")
        self.model, self._data = model, data
        self.id = model.camera(name).id
        model.vis.global_.offwidth = model.vis.global_.offheight = px
        if light:
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        self._gl = backend.GLContext(px, px)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        if light:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option, self._perturb = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._option.geomgroup[:] = [group in groups for group in range(mujoco.mjNGROUP)]
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = self.id
        self._viewport = mujoco.MjrRect(0, 0, px, px)
        self._px = px
        _open_cameras.add(self)
        _close_cameras_at_exit()

    def update(self) -> None:
        """Remember where everything is now."""
        mujoco.mjv_updateScene(
            self.model,
            self._data,
            self._option,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )

    def read(self) -> np.ndarray:
        """Draw what `update` remembered: uint8 [px, px, 3], bottom row first like LIBERO's images."""
        self._gl.make_current()
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        frame = np.empty((self._px, self._px, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(frame, None, self._viewport, self._context)
        return frame

    def close(self) -> None:
        """Free the GL objects; may be called twice."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None
            _open_cameras.discard(self)


_open_cameras: weakref.WeakSet[Camera] = weakref.WeakSet()


@functools.cache
def _close_cameras_at_exit() -> None:
    """Call when the display exists: it ends at exit too, and exit handlers run last-registered first."""
    atexit.register(_close_cameras)


def _close_cameras() -> None:
    for camera in list(_open_cameras):
        camera.close()
