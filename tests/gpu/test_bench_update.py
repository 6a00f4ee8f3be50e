"""Updates of the published sizes: PCM's speed against its share of the rows, and the memory against the plan."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.helpers.tiny_fit import ROOT


@pytest.mark.parametrize(
    ("name", "checkpoint", "trajectories"),
    [("openvla_oft_7b", "random:7b", 16), ("pi05", "random:pi05", 40), ("smolvla", "random:smolvla", 80)],
)
def test_pcm_is_as_fast_as_it_keeps_few_rows_and_the_memory_is_as_planned(name, checkpoint, trajectories):
    """One to two minutes each on an H200; 80 GB."""
    options = [f"policy={name}", f"policy.checkpoint={checkpoint}", "sim.camera_px=256", f"trajectories={trajectories}"]
    command = [sys.executable, "tools/bench_update.py", *options, "grpo.micro_rows=12"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["rows"]["pcm"] == 12 * trajectories
    for way in ("full", "full_padded"):
        assert line[f"speedup_vs_{way}"] >= 0.95 * line[f"rows_vs_{way}"]
    planned = float(re.search(r"memory plan in GB: .* = ([0-9.]+) of", done.stdout)[1]) * 1e9
    assert max(line["peak_memory_mb"].values()) * 2**20 <= planned
