"""How much of the machine this process may use: cores and memory, as the scheduler and the container allow, and how it
returns memory.

A container's limits are in its cgroups, which `os.cpu_count` and the machine's total memory do not show. Version 2 has
one tree with `cpu.max` and `memory.max`; version 1 has a tree per controller. A limit of a parent group holds as well.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from pathlib import Path

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def cores(root: Path = Path("/")) -> int:
    """Cores to keep busy: those of the process's affinity, or fewer where a cgroup grants less time than they have.

    Args:
        root: of the file system that holds /proc and /sys; for tests.
    """
    quotas = [math.ceil(quota) for group in _groups(root, "cpu") if (quota := _cpu_quota(group)) is not None]
    return min([len(os.sched_getaffinity(0)), *quotas])


def memory_bytes(root: Path = Path("/")) -> int:
    """Memory in bytes: the machine's, or less where a cgroup allows less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = [group / name for group in _groups(root, "memory") for name in ("memory.max", "memory.limit_in_bytes")]
    return min([total, *(int(text) for text in map(_read, files) if text.isdigit())])


def return_freed_memory() -> None:
    """Give blocks of 4 MiB or more back to the system when they are freed, where the C library is glibc.

    Its heap keeps freed blocks of up to 32 MiB while anything above them is in use. A forward pass with gradient
    checkpoints leaves one small tensor above each layer's large ones: of the 7B's layers 90 MB each stayed behind.
    Blocks that are mapped one by one do not, and cost some time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**22)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup and its parents, of either version."""
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount = root / "sys" / "fs" / "cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys" / "fs" / "cgroup" / controllers
            mount = mount if mount.is_dir() else mount.with_name(controller)
        else:
            continue
        group = mount / path.lstrip("/")
        while group != mount:  # a container may not see these, but sees its own limits at the mount
            yield group
            group = group.parent
        yield mount


def _cpu_quota(group: Path) -> float | None:
    """Cores' worth of time that a group is granted; None = no limit."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) else None


def _read(file: Path) -> str:
    """The file's text, empty where there is none."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
