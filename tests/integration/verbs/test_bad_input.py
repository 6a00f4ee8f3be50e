"""What a user may get wrong: one line that names the fix, exit code 2, and no simulator started."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.helpers import toy_fit
from tests.helpers.tiny_fit import ROOT
from vla_rl import fit
from vla_rl.run.cli import run_entry

TINY = "conf=pcm_object_tiny"
TRIM = "conf=policytrim_object_tiny"
OFFICIAL = ["sim.placement_noise_m=0", "rollout.train_init_states=[0,40]"]

MISTAKES = [
    ([], "conf=pcm_object_tiny"),
    ([TINY, "conf=base"], "one conf can be given, got pcm_object_tiny, base: conf=base"),
    ([TINY, "mask=PCM"], "did you mean 'pcm'?"),
    ([TINY, "sim.tasks=[0,", "5]"], "quote a value with spaces"),
    ([TINY, "callbacks.mine._target_=datetime.timedelta"], "datetime.timedelta is no callback of Lightning"),
    ([TINY, "reward._target_=callbacks.Timing"], "callbacks.Timing has no score, so it is no reward: reward=none"),
    (["conf=pcm_objct"], "did you mean 'pcm_object'?"),
    ([TINY, "mask=pmc"], "(mask=pcm)"),
    ([TINY, "itrations=3"], "did you mean 'iterations'?"),
    ([TINY, "mask.budgte=3"], "did you mean 'budget'?"),
    ([TINY, "callbacks.progress.speed=3"], "remove callbacks.progress.speed"),
    ([TINY, "iterations=ten"], "iterations must be an integer, got 'ten'"),
    ([TINY, "mask.budget=x"], "mask.budget=12"),
    ([TINY, "mask.budget=0"], "mask.budget=12"),
    ([TINY, "mask.budget=1000", "sim.horizon=144"], "mask.budget=18 is the most"),  # 144 steps in chunks of 8
    ([TINY, "mask.budget.fraction=2"], "mask.budget.fraction=0.19"),
    ([TINY, "mask=random", "mask.budget.knee=true"], "(mask=pcm)"),
    ([TINY, "mask.budget.knee=true", "mask.budget.chunks=3"], "mask.budget=12"),
    ([TINY, "mask.labeller=griper"], "mask.labeller=gripper"),
    ([TINY, "mask.labeller=no_such.fn"], "no module named 'no_such'"),
    ([TINY, "mask.estimator=hajk"], "mask.estimator=hajek"),
    ([TINY, "mask.collapse=median"], "mask.collapse=mean"),
    ([TINY, "mask.debias=2"], "mask.debias=true"),
    ([TINY, "grpo.advantage=rlo"], "grpo.advantage=rloo"),
    ([TINY, "grpo.group_filter=x"], "grpo.group_filter=drop"),
    ([TINY, "grpo.resample_rounds=0"], "grpo.resample_rounds=2"),
    ([TINY, "grpo.downsample=3"], "grpo.downsample=4"),
    ([TINY, "grpo.downsample=10"], "grpo.downsample=4"),
    (
        [TINY, "callbacks.augment._target_=callbacks.Augment", "callbacks.augment.jitter=2"],
        "callbacks.augment.jitter=0.1",
    ),
    (
        [TINY, "callbacks.trace._target_=callbacks.Trace", "callbacks.trace.iteration=0"],
        "callbacks.trace.iteration=2",
    ),
    ([TINY, "logger=wanb"], "(logger=wandb)"),
    ([TRIM, "reward.ratios=[0.5,1.5]"], "reward.ratios=[0.5,0.75,1]"),
    ([TRIM, "reward.preset=papr"], "did you mean 'paper'?"),
    ([TRIM, "reward.base_window=12"], "reward.base_window=8 is the most"),
    ([TRIM, "reward.extend_iterations=5"], "reward.extend_iterations=0 takes stage 2 alone"),
    ([TRIM, "reward.base_window=8", "reward.extend_iterations=5"], "reward.extend_iterations=0 takes stage 2 alone"),
    ([TRIM, "callbacks.trim_report.episodes=0"], "callbacks.trim_report.episodes=60"),
    (["conf=policytrim_object_tiny_h16", "policy.checkpoint=shipped:object_tiny"], "sim.chunk_steps=8"),
    ([TINY, "policy.chunk_steps=0"], "policy.chunk_steps=8"),
    ([TINY, "mask.floor=0"], "mask.floor=0.1"),
    ([TINY, "mask.floor=1.5"], "mask.floor=0.1"),
    ([TINY, "rollout.group_size=1"], "rollout.group_size=8"),
    ([TINY, "callbacks.checkpoint.every_iterations=x"], "callbacks.checkpoint.every_iterations=1"),
    ([TINY, "sim.suite=objct"], "sim.suite=object"),
    ([TINY, "sim.tasks=[99]"], "sim.tasks=[0,5]"),
    ([TINY, "sim.tasks=5"], "sim.tasks=[0,5]"),
    ([TINY, "sim.assets=/nonexistent"], "sim.assets=standin"),
    ([TINY, "sim.assets=3"], "sim.assets=standin"),
    ([TINY, "sim.suite=10"], "stand-in assets exist for suites object, spatial, goal, not for '10': sim.assets=hub"),
    ([TINY, "sim.chunk_steps=10"], "sim.chunk_steps=8"),
    ([TINY, *OFFICIAL, "rollout.heldout_init_states=[40,51]"], "rollout.heldout_init_states=[40,50]"),
    ([TINY, "sim.placement_noise_m=0"], "rollout.train_init_states=[0,40]"),
    ([TINY, "policy.checkpoint=/nonexistent"], "missing checkpoint '/nonexistent'"),
    ([TINY, "policy.checkpoint=shipped:none"], "there is: shipped:metaworld_tiny, shipped:object_flow_tiny"),
    ([TINY, "policy.checkpoint=3"], "policy.checkpoint must be a folder or a hub name, got 3"),
    ([TINY, "policy.lora={r: 4}"], "policy.lora={r: 32, alpha: 32}"),
    ([TINY, "policy.lora={r: 4, alpha: 4, targets: [q_prj]}"], "policy.lora.targets=[q_proj,"),
    ([TINY, "policy.adapter=folder"], "policy.lora={r: 32, alpha: 32}"),
    ([TINY, "policy.dtype=float16"], "policy.dtype=bfloat16"),
    ([TINY, "policy.image_pipeline=tf"], "policy.image_pipeline=fast"),
    ([TINY, "policy.action_head=l2"], "policy.action_head=tokens"),
    ([TINY, "policy.action_head=l1"], "must have one action_head--"),
    ([TINY, "policy.quantization=nf4"], "policy.lora={r: 32, alpha: 32}"),
    ([TINY, "policy.quantization=int3", "policy.lora={r: 4, alpha: 4}"], "policy.quantization=int8"),
    ([TINY, "policy.vision_cache_rows=-1"], "policy.vision_cache_rows=0"),
    ([TINY, "policy.vision_cache_rows=8"], "policy.lora.targets=[q_proj,"),
    ([TINY, "sim.wrist_camera=true"], "sim.wrist_camera=false"),
    ([TINY, "sim.wrist_camera=3"], "sim.wrist_camera=false"),
    ([TINY, "optim.optimizer=sgd"], "optim.optimizer=adamw"),
    (["conf=pcm_spatial_tiny"], "missing required value: policy.checkpoint"),
    ([TINY, "trainer.devices=x"], "trainer.devices=1"),
    ([TINY, "trainer.strategy=fsdp"], "trainer.strategy=fsdp2"),
    ([TINY, "trainer.strategy=horovod"], "Choices: auto, ddp, fsdp2 (trainer.strategy=auto)"),
    ([TINY, "trainer.devices=9"], "9 processes cannot share 8 groups, a group stays whole: rollout.groups=9"),
    ([TINY, "optim.max_skipped_steps=0"], "optim.max_skipped_steps=3"),
    ([TINY, "callbacks.checkpoint.keep=0"], "callbacks.checkpoint.keep=2"),
    ([TINY, "resume=/nonexistent"], "nothing to resume at /nonexistent"),
    ([TINY, "trainer=gpu", "trainer.devices=64"], "trainer.devices=1"),
    ([TINY, "trainer.max_epochs=3"], "remove trainer.max_epochs"),
]


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Run the program in this process; the line on stderr that it ends with."""
    monkeypatch.setattr("vla_rl.sim.pool.Worker", lambda *_: pytest.fail("a simulator was started"))

    def run(argv: list[str]) -> str:
        with pytest.raises(SystemExit) as exit:
            run_entry(fit.main, [*argv, f"run_dir={tmp_path / 'run'}"] if argv else argv)
        assert exit.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


@pytest.mark.parametrize(("argv", "fix"), MISTAKES, ids=[" ".join(argv[1:] or argv) for argv, _ in MISTAKES])
def test_one_line_names_the_fix(refused, argv, fix):
    assert fix in refused(argv)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the conf asks for")
def test_without_a_gpu_the_small_conf_is_named(refused):
    assert "conf=pcm_object_tiny" in refused(["conf=pcm_object"])


def test_a_budget_that_is_refused_leaves_no_run_folder(refused, tmp_path):
    refused([TINY, "mask.budget=1000"])
    assert not (tmp_path / "run").exists()  # the same run_dir works at the next try


def test_a_used_run_folder_is_refused(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert f"run_dir={tmp_path / 'run-2'}" in refused([TINY])


def test_gl_that_cannot_render_off_screen(refused, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.delenv("VLA_RL_GL_CHECKED", raising=False)
    assert "allowed: egl, osmesa; fix: unset MUJOCO_GL" in refused([TINY])


def test_gl_without_a_driver(refused, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", "/nonexistent")  # where libEGL looks for drivers
    monkeypatch.delenv("VLA_RL_GL_CHECKED", raising=False)
    assert "apt-get install libegl1" in refused([TINY])


def test_the_program_itself_says_no_more(tmp_path):
    # found last, when everything but simulators has been built
    argv = [TINY, "mask.budget=1000", "sim.workers=1", f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "vla_rl.fit", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "is the most" in line
    assert done.returncode == 2


def test_a_policy_without_statistics_is_found_at_its_first_action(tmp_path):
    toy = ["sim._target_=tests.helpers.toy.ChunkPool", "mask.budget=1"]
    program = toy_fit.start(tmp_path / "run", *toy, "policy._target_=vla_rl.load_policy", "policy.checkpoint=null")
    assert program.wait() == 2
    (line,) = program.errors.splitlines()
    assert line.startswith("error: ")
    assert "policy.checkpoint=shipped:object_tiny" in line
