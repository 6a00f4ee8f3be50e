"""`tools/bench_update.py`: what it measures and prints, with the small policy; and the 7B's speed, on a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from tests.helpers.tiny_fit import ROOT
from tests.helpers.toy_fit import Fork
from tools import bench_update
from vla_rl.errors import UserError
from vla_rl.run.cli import run_entry


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/bench_update.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_small_policy_on_a_cpu(tmp_path):
    argv = ["policy=openvla_oft_tiny", "trajectories=4", "grpo.micro_rows=12"]
    program = Fork(lambda: run_entry(bench_update.main, "about", argv), tmp_path)
    assert program.wait() == 0
    assert program.errors == ""
    line = json.loads(program.printed.splitlines()[-1])
    # 4 x 12; three of 16 and one of 64; 4 x 64
    assert line["rows"] == {"pcm": 48, "full": 112, "full_padded": 256}
    for way in ("full_padded", "full"):
        ratio = line["seconds"][way] / line["seconds"]["pcm"]
        assert line[f"speedup_vs_{way}"] == pytest.approx(ratio, rel=0.01)
    for way, rows in line["rows"].items():
        assert line["rows_per_s"][way] == pytest.approx(rows / line["seconds"][way])
        assert line["peak_memory_mb"][way] > 100
        # 0.00107 TFLOP per row: see tests/unit/policy/test_flops.py
        assert line["model_tflop_per_s"][way] == pytest.approx(0.00107 * line["rows_per_s"][way], rel=0.01)
    assert line["versions"]["torch"] == torch.__version__


def test_a_mistake_is_one_line():
    with pytest.raises(UserError, match="^trajectories must be a whole number .* got 'few': trajectories=80$"):
        bench_update.main(["policy=openvla_oft_tiny", "trajectories=few"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device with 80 GB")
def test_the_7b_on_a_gpu():
    """960 rows, the update of an iteration: 80 trajectories of 12 chunks. The target is for one H200."""
    done = bench("policy=openvla_oft_7b", "policy.checkpoint=random:7b", "trajectories=80", "grpo.micro_rows=12")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["rows"]["pcm"] == 960
    assert line["speedup_vs_full_padded"] >= 0.95 * 64 / 12
    planned = float(re.search(r"memory plan in GB: .* = ([0-9.]+) of", done.stdout)[1]) * 1e9
    assert max(line["peak_memory_mb"].values()) * 2**20 <= planned
    if "H200" in line["device"]:
        assert line["seconds"]["pcm"] <= 30
