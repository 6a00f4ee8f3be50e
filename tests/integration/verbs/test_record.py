"""`python -m vla_rl.record` into a LeRobotDataset, and supervised training on it."""

from __future__ import annotations

import json

import pytest
import torch

from vla_rl import record, sft
from vla_rl.demos.load import load_demos
from vla_rl.errors import UserError

pytest.importorskip("pyarrow", reason="optional: pip install 'vla-rl[data]'")


def test_demonstrations_as_lerobot_dataset_and_as_npz_are_the_same_and_train_a_policy(tmp_path):
    arguments = ["tasks=[0]", "init_states=[0,2]", "linger_steps=2", "workers=1", "noise=0.1"]
    for out in ("set", "demos.npz"):
        record.main([*arguments, f"out={tmp_path / out}"])
    for lerobot, npz in zip(load_demos(tmp_path / "set"), load_demos(tmp_path / "demos.npz"), strict=True):
        assert torch.equal(lerobot.frame_THWC[range(len(lerobot))], npz.frame_THWC)
        assert torch.equal(lerobot.action_TA, npz.action_TA)
        assert torch.equal(lerobot.proprio_TP, npz.proprio_TP)
        assert (lerobot.suite, lerobot.task, lerobot.init_state) == (npz.suite, npz.task, npz.init_state)
        assert (lerobot.seed, lerobot.success) == (1, True)
    assert "mujoco" in json.loads((tmp_path / "set/meta/vla_rl.json").read_text())["versions"]
    run = tmp_path / "run"
    sft.main(
        ["conf=sft_object_tiny", "sft.steps=2", "sft.batch_rows=2", f"sft.demos={tmp_path / 'set'}", f"run_dir={run}"]
    )
    assert (run / "policy/config.json").is_file()
    with pytest.raises(UserError, match=r"out=.*set exists; .*: out=.*set-2"):
        record.main([*arguments, f"out={tmp_path / 'set'}"])


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
