"""`python -m vla_rl.record` into a LeRobotDataset, and supervised training on it."""

from __future__ import annotations

import json

import pytest

from tests.unit.demos.test_lerobot_writer import make_demo
from vla_rl import record, sft
from vla_rl.demos.formats.lerobot_writer import LeRobotWriter
from vla_rl.errors import UserError

pytest.importorskip("pyarrow", reason="optional: pip install 'vla-rl[data]'")


def test_a_recorded_set_trains_a_policy(tmp_path):
    out, run = tmp_path / "set", tmp_path / "run"
    with LeRobotWriter(out, fps=20, robot="panda", about={}) as writer:
        for number in (0, 2):
            demo = make_demo(number, steps=6)
            demo.frame_THWC = demo.frame_THWC[..., :3].contiguous()
            writer.add(demo)
    sft.main(["conf=sft_object_tiny", "sft.steps=2", "sft.batch_rows=2", f"sft.demos={out}", f"run_dir={run}"])
    assert (run / "policy/config.json").is_file()
    with pytest.raises(UserError, match=r"out=.*set exists; .*: out=.*set-2"):
        record.main(["tasks=[0]", f"out={out}"])


def test_what_a_policy_does_failures_included(tmp_path, capsys):
    arguments = ["conf=pcm_object_tiny", "checkpoint=shipped:object_tiny", "sim.tasks=[0]", "sim.horizon=12",
                 "sim.workers=1", "init_states=[3,4]", "seed=5"]  # fmt: skip
    record.main([*arguments, "successes_only=false", f"out={tmp_path / 'set'}"])
    assert "task 0: 0 of 1 succeed" in capsys.readouterr().out
    about = json.loads((tmp_path / "set/meta/vla_rl.json").read_text())
    assert about["policy"]["checkpoint"] == "shipped:object_tiny"
    (episode,) = about["episodes"]
    assert (episode["init_state"], episode["success"]) == (3, False)
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert (info["total_frames"], info["robot_type"], info["fps"]) == (12, "panda", 20)
    with pytest.raises(UserError, match="no demonstrations to save"):
        record.main([*arguments, f"out={tmp_path / 'successes'}"])
    assert not (tmp_path / "successes").exists()
