"""`tools/bench_update.py`: what it measures and prints, with the small policy."""

from __future__ import annotations

import json

import pytest
import torch

from tests.helpers.toy_fit import Fork
from tools import bench_update
from vla_rl.errors import UserError
from vla_rl.run.cli import run_entry


# TFLOP per row: see tests/integration/policy/test_flops.py
@pytest.mark.parametrize(("policy", "tflop"), [("openvla_oft_tiny", 0.00107), ("flow_tiny", 0.000599)])
def test_the_small_policies_on_a_cpu(tmp_path, policy, tflop):
    argv = [f"policy={policy}", "trajectories=4", "grpo.micro_rows=12"]
    program = Fork(lambda: run_entry(bench_update.main, argv), tmp_path)
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
        assert line["model_tflop_per_s"][way] == pytest.approx(tflop * line["rows_per_s"][way], rel=0.01)
    assert line["versions"]["torch"] == torch.__version__


def test_a_mistake_is_one_line():
    with pytest.raises(UserError, match="^trajectories must be a whole number .* got 'few': trajectories=80$"):
        bench_update.main(["policy=openvla_oft_tiny", "trajectories=few"])
