"""`tools/long_run.py`: a block of episodes after the other, and what it prints last."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.helpers.tiny_fit import ROOT


def test_it_reports_every_block():
    toy = [
        "conf=pcm_object_tiny",
        "policy._target_=tests.helpers.toy.ToyPolicy",
        "sim._target_=tests.helpers.toy.ToyPool",
    ]
    command = [sys.executable, "tools/long_run.py", "--episodes", "150", *toy]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["episodes 100", "episodes 150"]
    report = json.loads(last)
    assert report["episodes"] == 150
    assert all(50 < used < 5000 for used in report["memory_mb"])  # torch alone takes 200 MB
    assert all(0 < cpu_s < 1 for cpu_s in report["cpu_s_per_episode"])  # a toy episode takes milliseconds
