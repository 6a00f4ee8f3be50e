"""`python -m vla_rl.sim.gl_frame`, in a process of its own: draws one fixed frame with `$MUJOCO_GL`.

A backend that cannot draw, or crashes, ends this process and no other.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time

SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 0 3" dir="0 0.2 -1" directional="true" castshadow="false"/>
    <camera name="fixed" pos="0 -1 1" xyaxes="1 0 0 0 1 1"/>
    <geom type="plane" size="2 2 0.1" rgba="0.5 0.5 0.5 1" group="1"/>
    <geom type="box" size="0.2 0.2 0.2" pos="-0.2 0 0.2" rgba="0.9 0.1 0.1 1" group="1"/>
    <geom type="sphere" size="0.15" pos="0.25 0 0.15" rgba="0.1 0.2 0.9 1" group="1"/>
  </worldbody>
</mujoco>
"""
PX, FRAMES, TIMEOUT_S = 128, 5, 120


def draw_in_child(backend: str) -> dict[str, str | float]:
    """The frame that `backend` (egl, osmesa) draws in a child process: `sha256`, `brightness` (0..255), `ms`.

    Raises:
        RuntimeError: it draws nothing; the last line it said.
    """
    command = [sys.executable, "-P", "-m", "vla_rl.sim.gl_frame"]
    chosen = {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    environment = os.environ | chosen | {"PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"no frame within {TIMEOUT_S} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(said[-1])
    frame = json.loads(done.stdout)
    if frame["colours"] < 3:
        raise RuntimeError(f"the frame is blank ({frame['colours']} colours)")
    return frame


def main() -> None:
    import mujoco
    import numpy as np

    from vla_rl.sim.render import Camera

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = Camera(model, data, "fixed", PX, light=True)
    camera.update()
    frame = camera.read()  # the first one also warms up
    began = time.perf_counter()
    for _ in range(FRAMES):
        frame = camera.read()
    seconds = time.perf_counter() - began
    camera.close()
    print(
        json.dumps(
            {
                "sha256": hashlib.sha256(frame.tobytes()).hexdigest()[:12],
                "brightness": round(float(frame.mean()), 1),
                "colours": len(np.unique(frame.reshape(-1, 3), axis=0)),
                "ms": round(1000 * seconds / FRAMES, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
