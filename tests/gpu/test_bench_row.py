"""The 7B policy from files: whole, in bfloat16, within the planned memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.helpers.tiny_fit import ROOT

BFLOAT16 = 0.05  # how far log-probabilities of the same row may be apart


def test_all_layers_load_act_and_learn_within_the_plan(tmp_path):
    """Random weights, 15 GB on disk."""
    folder = tmp_path / "weights"
    run = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    subprocess.run([sys.executable, "tools/write_random_checkpoint.py", folder, "--layers", "32"], **run, check=True)
    assert len(list(folder.glob("model*.safetensors"))) >= 2
    options = ["policy=openvla_oft_7b", f"policy.checkpoint={folder}", "sim.camera_px=256"]
    done = subprocess.run([sys.executable, "tools/bench_row.py", *options], **run, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["parameters"] > 7.5e9
    assert line["update"]["peak_memory_mb"] <= line["plan_mb"]
    assert line["log_ratio_abs"] < BFLOAT16
