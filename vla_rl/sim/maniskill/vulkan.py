"""Whether ManiSkill can draw on this machine: its renderer needs a Vulkan driver, and its tasks need its renderer."""

from __future__ import annotations

import os
import subprocess
import sys

from vla_rl.errors import UserError

# Makes the renderer, in a child process since a broken driver may crash. Nothing else than this says whether a driver
# has what SAPIEN asks for.
_PROBE = 'import sapien; sapien.render.RenderSystem(sapien.Device("cpu"))'
_CHECKED = "VLA_RL_VULKAN_CHECKED"
REMEDY = "Mesa 24.3 or newer; Debian 13: apt-get install mesa-vulkan-drivers libvulkan1; Debian 12: from its backports"


def check_vulkan() -> None:
    """Raise UserError unless a Vulkan driver draws here.

    A success is kept in the environment, which processes started later inherit, so the probe (~1 s) runs once.
    """
    drivers = f"drivers {os.environ.get('VK_DRIVER_FILES') or os.environ.get('VK_ICD_FILENAMES') or 'of the system'}"
    if os.environ.get(_CHECKED) == drivers:
        return
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False
        )
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = "no answer within 60 s"
    if why:
        raise UserError(f"no Vulkan driver works here, and ManiSkill draws with Vulkan ({why}); needed: {REMEDY}")
    os.environ[_CHECKED] = drivers
