"""The choice of an off-screen GL backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from vla_rl.errors import UserError
from vla_rl.sim import gl

CHOSEN = ("MUJOCO_GL", "VLA_RL_GL_CHECKED", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")
DRAWS = "from vla_rl.sim import gl; gl.check_gl(); from vla_rl.sim.gl_frame import main; main()"


def run(script: str, **env: str) -> subprocess.CompletedProcess:
    """In a fresh interpreter, with stdin closed: a question would fail."""
    environment = {k: v for k, v in os.environ.items() if k not in CHOSEN} | env
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment
    )


def test_gl_that_cannot_render_off_screen_is_refused():
    done = run("from vla_rl.sim.gl import check_gl; check_gl()", MUJOCO_GL="glfw")
    assert "MUJOCO_GL=glfw cannot render off-screen; allowed: egl, osmesa; fix: unset MUJOCO_GL" in done.stderr


def test_no_gl_names_the_packages(monkeypatch):
    monkeypatch.delenv("VLA_RL_GL_CHECKED", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_probe", lambda script: None)
    with pytest.raises(UserError, match="libegl1 libgl1 libgles2 libegl-mesa0.*libosmesa6"):
        gl.check_gl()


def test_gl_is_checked_once_and_inherited():
    done = run(
        "import os; from vla_rl.sim import gl; name = gl.check_gl(); gl._probe = None\n"
        "print(name == gl.check_gl() == os.environ['MUJOCO_GL'])"
    )
    assert done.stdout == "True\n", done.stderr


def test_a_pyopengl_platform_left_over_from_elsewhere_does_not_matter():
    done = run(DRAWS, PYOPENGL_PLATFORM="wgl")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["colours"] > 3
    draws = "from vla_rl.sim import gl_frame; print(gl_frame.draw_in_child('egl')['colours'] > 3)"
    assert run(draws, PYOPENGL_PLATFORM="wgl").stdout == "True\n"


@pytest.mark.parametrize("device", ["63", "gpu", "-1"])
def test_an_egl_device_that_is_not_there_is_named(device):
    done = run("from vla_rl.sim import gl; gl.check_gl()", MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID=device)
    assert f"MUJOCO_EGL_DEVICE_ID={device}: no EGL device of that number works here; allowed: 0" in done.stderr
    assert done.stderr.strip().endswith("fix: unset MUJOCO_EGL_DEVICE_ID")


def test_an_egl_device_chosen_by_its_number_draws():
    assert run(DRAWS, MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="0").returncode == 0


def test_only_the_devices_that_work_can_be_chosen(monkeypatch):
    for name in CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gl, "_probe", lambda script: "0\n1\n")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    with pytest.raises(UserError, match="allowed: 1; fix"):
        gl.check_gl()
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "1")
    assert gl.check_gl() == "egl"
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "2")  # another choice is checked anew
    with pytest.raises(UserError, match="MUJOCO_EGL_DEVICE_ID=2"):
        gl.check_gl()
