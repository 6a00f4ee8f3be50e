"""Which off-screen GL backend draws the frames on this machine: EGL where it works, else OSMesa."""

from __future__ import annotations

import os
import subprocess
import sys

from vla_rl.errors import UserError

# Opens an EGL display on each device, as MuJoCo does, and prints for each whether that works (1 or 0); run in a child
# process, since a broken driver may crash.
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
devices, count = (pointer * 64)(), ctypes.c_int()
query(64, devices, ctypes.byref(count))
for device in devices[:count.value]:
    shown = display(0x313F, device, None)
    print(int(bool(shown and initialize(shown, None, None))), flush=True)
"""
_OSMESA_PROBE = """
import ctypes, ctypes.util
ctypes.CDLL(ctypes.util.find_library("OSMesa") or "libOSMesa.so.8").OSMesaCreateContextExt
"""

BACKENDS = ("egl", "osmesa")


def loads(backend: str) -> bool:
    """Whether the library of a GL backend (egl, osmesa) is installed and finds a device."""
    if backend == "egl":
        return any(_egl_devices())
    return _probe(_OSMESA_PROBE) is not None


def _egl_devices() -> list[bool]:
    """For each EGL device whether a display opens on it; empty without EGL."""
    return [line == "1" for line in (_probe(_EGL_PROBE) or "").split()]


def _probe(script: str) -> str | None:
    """What a script prints in a child process; None where it fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else done.stdout


def check_gl() -> str:
    """Choose how to render off-screen: `$MUJOCO_GL` if set, else egl if it works here, else osmesa.

    Sets `MUJOCO_GL` and what PyOpenGL goes by, which processes started later inherit, so the probe (~0.1 s) runs once.
    Call before MuJoCo is imported.

    Raises:
        UserError: nothing works here (the message names the packages to install), or the EGL device that
            `$MUJOCO_EGL_DEVICE_ID` asks for does not.
    """
    wanted, device = os.environ.get("MUJOCO_GL", "").strip().lower(), os.environ.get("MUJOCO_EGL_DEVICE_ID", "")
    if os.environ.get("VLA_RL_GL_CHECKED") == f"{wanted} {device}" and wanted:
        return wanted
    if wanted and wanted not in BACKENDS:
        raise UserError(f"MUJOCO_GL={wanted} cannot render off-screen; allowed: egl, osmesa; fix: unset MUJOCO_GL")
    for name in [wanted] if wanted else BACKENDS:
        if loads(name):
            if name == "egl" and device:
                _check_egl_device(device)
            os.environ["MUJOCO_GL"] = name
            os.environ["PYOPENGL_PLATFORM"] = name  # one left over from elsewhere would stop MuJoCo's import
            os.environ["VLA_RL_GL_CHECKED"] = f"{name} {device}"
            return name
    raise UserError(
        f"no off-screen GL works here (MUJOCO_GL={wanted or 'unset'}); needed: egl or osmesa; on Debian:"
        " apt-get install libegl1 libgl1 libgles2 libegl-mesa0 (egl) or libosmesa6 (MUJOCO_GL=osmesa)"
    )


def _check_egl_device(device: str) -> None:
    working = [number for number, works in enumerate(_egl_devices()) if works]
    if not device.isdigit() or int(device) not in working:
        raise UserError(
            f"MUJOCO_EGL_DEVICE_ID={device}: no EGL device of that number works here; allowed:"
            f" {', '.join(map(str, working))}; fix: unset MUJOCO_EGL_DEVICE_ID"
        )
