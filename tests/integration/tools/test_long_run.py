"""`tools/long_run.py`: a block of episodes after the other, and what it prints last."""

from __future__ import annotations

import json

from tests.helpers.toy_fit import Fork
from tools import long_run
from vla_rl.run.cli import run_entry


def test_it_reports_every_block(tmp_path):
    toy = [
        "conf=pcm_object_tiny",
        "policy._target_=tests.helpers.toy.ToyPolicy",
        "sim._target_=tests.helpers.toy.ToyPool",
    ]
    program = Fork(lambda: run_entry(long_run.main, ["--episodes", "150", *toy]), tmp_path)
    assert program.wait() == 0, program.errors
    *lines, last = program.printed.splitlines()
    assert [line.split(":")[0] for line in lines] == ["episodes 100", "episodes 150"]
    report = json.loads(last)
    assert report["episodes"] == 150
    assert all(50 < used < 5000 for used in report["memory_mb"])  # torch alone takes 200 MB
    assert all(0 < cpu_s < 1 for cpu_s in report["cpu_s_per_episode"])  # a toy episode takes milliseconds
