"""Limits of containers, from trees of files as the kernel shows them; memory that goes back to the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from vla_rl.machine import cores, memory_bytes


@pytest.fixture
def machine(tmp_path: Path, monkeypatch):
    """A machine of 8 cores and 64 GiB; call it with its files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**24}.__getitem__)

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return write


def test_without_cgroups(machine):
    assert (cores(machine({})), memory_bytes(machine({}))) == (8, 2**36)


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 8), ("250000 100000", 3), ("1000 100000", 1)])
def test_version_2(machine, quota, expected):
    root = machine({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": quota, "sys/fs/cgroup/memory.max": "4000000"})
    assert (cores(root), memory_bytes(root)) == (expected, 4_000_000)


def test_the_tightest_of_a_group_and_its_parents_holds(machine):
    root = machine(
        {
            "proc/self/cgroup": "0::/user/job",
            "sys/fs/cgroup/user/job/cpu.max": "max 100000",
            "sys/fs/cgroup/user/cpu.max": "400000 100000",
            "sys/fs/cgroup/user/job/memory.max": "5000",
            "sys/fs/cgroup/user/memory.max": "max",
        }
    )
    assert (cores(root), memory_bytes(root)) == (4, 5000)


def test_version_1(machine):
    """Of a container, which sees its own limits at the mount and not under the path it is told."""
    root = machine(
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**33),
        }
    )
    assert (cores(root), memory_bytes(root)) == (2, 2**33)


def test_version_1_without_limits(machine):
    root = machine(
        {
            "proc/self/cgroup": "5:memory:/\n3:cpu:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        }
    )
    assert (cores(root), memory_bytes(root)) == (8, 2**36)


# 40 blocks of 8 MiB, a small one above each that stays; freed, how much of them the process still has, in MiB
KEEPS = """
import ctypes
from vla_rl.machine import return_freed_memory
{call}
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
rss = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20
c.free(c.malloc(31 * 2**20))  # from now on glibc takes blocks up to this size from its heap
before, blocks = rss(), []
for _ in range(40):
    blocks.append(c.malloc(8 * 2**20))
    ctypes.memset(blocks[-1], 1, 8 * 2**20)
    c.malloc(2**16)
for block in blocks:
    c.free(block)
print(rss() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries return memory by rules of their own")
def test_freed_blocks_go_back_to_the_system():
    def kept(call: str) -> int:
        command = [sys.executable, "-c", KEEPS.format(call=call)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert kept("return_freed_memory()") < 20
    assert kept("") > 200
