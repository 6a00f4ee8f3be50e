"""Which off-screen GL backend draws the frames on this machine: EGL where it works, else OSMesa."""

from __future__ import annotations

import os
import subprocess
import sys

from vla_rl.errors import UserError

# Creates and destroys an EGL display on any device, as MuJoCo does; run in a child, since a broken driver may crash.
_EGL_PROBE = """
import ctypes, sys
egl = ctypes.CDLL("libEGL.so.1")
egl.eglGetProcAddress.restype = ctypes.c_void_p
def function(name, result, *arguments):
    address = egl.eglGetProcAddress(name) or sys.exit(2)
    return ctypes.CFUNCTYPE(result, *arguments)(address)
pointer = ctypes.c_void_p
query = function(b"eglQueryDevicesEXT", ctypes.c_uint, ctypes.c_int, ctypes.POINTER(pointer),
                 ctypes.POINTER(ctypes.c_int))
display = function(b"eglGetPlatformDisplayEXT", pointer, ctypes.c_uint, pointer, pointer)
initialize = function(b"eglInitialize", ctypes.c_uint, pointer, pointer, pointer)
devices, count = (pointer * 16)(), ctypes.c_int()
query(16, devices, ctypes.byref(count))
for device in devices[:count.value]:
    shown = display(0x313F, device, None)
    if shown and initialize(shown, None, None):
        sys.exit(0)
sys.exit(3)
"""
_OSMESA_PROBE = """
import ctypes, ctypes.util
ctypes.CDLL(ctypes.util.find_library("OSMesa") or "libOSMesa.so.8").OSMesaCreateContextExt
"""

BACKENDS = {"egl": _EGL_PROBE, "osmesa": _OSMESA_PROBE}


def loads(backend: str) -> bool:
    """Whether the library of a GL backend (egl, osmesa) is installed and finds a device."""
    return _probe(BACKENDS[backend])


def _probe(script: str) -> bool:
    try:
        done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def check_gl() -> str:
    """Choose how to render off-screen: `$MUJOCO_GL` if set, else egl if it works here, else osmesa.

    Sets `MUJOCO_GL`, which processes started later inherit, so the probe (~0.1 s) runs once. Call before MuJoCo is
    imported.

    Raises:
        UserError: nothing works here; names the packages to install.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if os.environ.get("VLA_RL_GL_CHECKED") == wanted != "":
        return wanted
    if wanted and wanted not in BACKENDS:
        raise UserError(f"MUJOCO_GL={wanted} cannot render off-screen; allowed: egl, osmesa; fix: unset MUJOCO_GL")
    for name in [wanted] if wanted else list(BACKENDS):
        if loads(name):
            os.environ["MUJOCO_GL"] = os.environ["VLA_RL_GL_CHECKED"] = name
            return name
    raise UserError(
        f"no off-screen GL works here (MUJOCO_GL={wanted or 'unset'}); needed: egl or osmesa; on Debian:"
        " apt-get install libegl1 libgl1 libgles2 libegl-mesa0 (egl) or libosmesa6 (MUJOCO_GL=osmesa)"
    )
