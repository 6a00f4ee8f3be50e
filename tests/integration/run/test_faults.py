"""What goes wrong around a run: a full disk, a rank that dies. It ends, says why, and leaves nothing but its run."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import psutil
import torch

from tests.helpers import toy_fit
from tests.helpers.results import result
from tests.helpers.tiny_fit import ROOT
from vla_rl.run.parent import end_with_parent

FULL = ["callbacks.full._target_=tests.integration.run.test_faults.FullDisk", "iterations=4"]


class FullDisk(L.Callback):
    """From the third iteration on, the system refuses files of a checkpoint's size, where DISK is full."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == 2 and os.environ.get("DISK") == "full":
            last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (last.stat().st_size // 2, resource.RLIM_INFINITY))


def test_a_full_disk_stops_the_run_and_the_checkpoint_before_it_is_whole(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setenv("DISK", "full")
    program = toy_fit.start(folder, *FULL)
    assert program.wait() == 1
    (line,) = program.errors.splitlines()
    assert line.startswith("error: cannot write the checkpoint after iteration 3 (")
    assert "File too large" in line
    assert line.endswith(f"when there is room again, resume={folder}")
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1  # counts from 0

    monkeypatch.delenv("DISK")
    toy_fit.run(folder, *FULL, f"resume={folder}")
    toy_fit.run(tmp_path / "whole", *FULL)
    assert result(folder) == result(tmp_path / "whole")


def test_a_rank_that_dies_ends_the_run(tmp_path):
    """The real program, which starts its second rank itself; both write into one folder, named after the time."""
    program = subprocess.Popen(
        [sys.executable, "-m", "vla_rl.fit", *toy_fit.ARGUMENTS, "trainer.devices=2", "iterations=100000"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    while not (line := program.stdout.readline()).startswith("iteration 2/"):
        assert line, program.stderr.read()
    (rank,) = psutil.Process(program.pid).children(recursive=True)
    rank.kill()
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 1
    assert f"error: rank 1 (process {rank.pid}) exited with status -9; " in errors
    assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE
    (folder,) = (tmp_path / "runs" / "pcm_object_tiny").iterdir()
    assert (folder / "config.yaml").exists()
    assert (folder / "checkpoints" / "last.ckpt").exists()


def test_a_rank_ends_with_the_process_that_started_it(tmp_path):
    def parent() -> None:
        child = os.fork()
        if child == 0:
            end_with_parent()
            print(os.getpid(), flush=True)
            time.sleep(100)
        os.waitpid(child, 0)

    program = toy_fit.Fork(parent, tmp_path)
    program.wait_until_printed("\n")
    child = psutil.Process(int(program.printed))
    assert child.is_running()
    program.kill()
    program.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
