"""The choice of an off-screen GL backend."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vla_rl.errors import UserError
from vla_rl.sim import gl


def run(script: str, **env: str) -> subprocess.CompletedProcess:
    """In a fresh interpreter, with stdin closed: a question would fail."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "VLA_RL_GL_CHECKED")} | env
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment
    )


def test_gl_that_cannot_render_off_screen_is_refused():
    done = run("from vla_rl.sim.gl import check_gl; check_gl()", MUJOCO_GL="glfw")
    assert "MUJOCO_GL=glfw cannot render off-screen; allowed: egl, osmesa; fix: unset MUJOCO_GL" in done.stderr


def test_no_gl_names_the_packages(monkeypatch):
    monkeypatch.delenv("VLA_RL_GL_CHECKED", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_probe", lambda script: False)
    with pytest.raises(UserError, match="libegl1 libgl1 libgles2 libegl-mesa0.*libosmesa6"):
        gl.check_gl()


def test_gl_is_checked_once_and_inherited():
    done = run(
        "import os; from vla_rl.sim import gl; name = gl.check_gl(); gl._probe = None\n"
        "print(name == gl.check_gl() == os.environ['MUJOCO_GL'])"
    )
    assert done.stdout == "True\n", done.stderr
