"""`tools/bench_row.py`: with the small policy, and with the 7B policy's widths and two layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.toy_fit import Fork
from tools import bench_row
from vla_rl.run.cli import run_entry

ROOT = Path(__file__).parents[3]


def test_the_small_policy(tmp_path):
    argv = ["policy=openvla_oft_tiny", "policy.lora={r: 2, alpha: 2}"]
    program = Fork(lambda: run_entry(bench_row.main, argv), tmp_path)
    assert program.wait() == 0, program.errors
    line = json.loads(program.printed.splitlines()[-1])
    assert line["parameters"] > 1_800_000
    assert 1431 < line["plan_mb"] < 1460  # 1.5 GB of reserve, and a small policy
    peaks = [line[name]["peak_memory_mb"] for name in ("load", "act", "update")]
    assert peaks == sorted(peaks) and peaks[0] > 100
    assert all(line[name]["seconds"] > 0 for name in ("load", "act", "update"))
    assert line["log_ratio_abs"] == 0.0
    assert line["versions"]["torch"] == torch.__version__


@pytest.mark.slow
def test_the_widths_of_the_7b_with_two_layers_stay_within_the_plan(tmp_path):
    """1.46 billion parameters: 3 GB on disk, 7 GB of memory, 2 minutes of CPU time."""
    folder = tmp_path / "weights"
    run = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, "check": True}
    subprocess.run([sys.executable, "tools/write_random_checkpoint.py", str(folder), "--layers", "2"], **run)
    options = ("policy=openvla_oft_7b", f"policy.checkpoint={folder}", "optim.lr=1e-5", "sim.camera_px=256")
    command = [sys.executable, "tools/bench_row.py", *options]
    printed = subprocess.run(command, capture_output=True, text=True, **run).stdout
    line = json.loads(printed.splitlines()[-1])
    assert line["parameters"] == pytest.approx(1.46e9, rel=0.01)
    assert 0.6 < line["update"]["peak_memory_mb"] / line["plan_mb"] < 1
