"""Limits of containers, from trees of files as the kernel shows them."""

from __future__ import annotations

import os
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
