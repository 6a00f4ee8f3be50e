"""The program on a GPU, in the real simulator: strategies over NCCL, EGL, the first step's probability ratio."""

from __future__ import annotations

import json
import os

import pytest
import torch

from tests.helpers.tiny_fit import start_fit
from vla_rl.errors import UserError
from vla_rl.sim import gl

GPU = ["trainer=gpu", f"trainer.devices={min(2, torch.cuda.device_count()) or 1}"]
FLOAT32 = 1e-4  # how far log-probabilities of the same row may be apart in batches of other sizes


def metrics(folder) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("conf", ["conf=pcm_object_tiny", "conf=pcm_object_flow_tiny"])
def test_it_trains_and_goes_on_after_a_stop(tmp_path, conf, strategy):
    arguments = [*GPU, f"trainer.strategy={strategy}", "evaluation.sampled_episodes=0", "evaluation.greedy_episodes=0"]
    for extra in (["iterations=1"], ["resume=auto"]):
        program = start_fit(tmp_path, *arguments, *extra, conf=conf)
        _, errors = program.communicate()
        assert program.returncode == 0, errors
    first, second = metrics(tmp_path)
    assert first["train/first_log_ratio_abs"] < FLOAT32
    assert second["train/first_log_ratio_abs"] < FLOAT32
    assert min(first["train/optimizer_steps"], second["train/optimizer_steps"]) > 0
    assert first["memory/gpu_peak_mb"] > 0


def test_a_gpu_draws_the_frames(monkeypatch):
    for name in ("MUJOCO_GL", "VLA_RL_GL_CHECKED", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID"):
        monkeypatch.setitem(os.environ, name, "")  # put back afterwards, whatever check_gl sets
    assert gl.check_gl() == "egl"
    working = [number for number, works in enumerate(gl._egl_devices()) if works]
    assert working
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    with pytest.raises(UserError, match="no EGL device of that number works here"):
        gl.check_gl()
