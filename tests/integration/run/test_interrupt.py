"""Ctrl-C: what is left is whole, nobody is left behind, and the last line says where the policy is."""

from __future__ import annotations

import errno
import os
import signal
import time

import lightning as L
import psutil
import pytest
import torch

from tests.helpers import make, tiny_fit
from vla_rl.errors import RunError
from vla_rl.policy import load_policy
from vla_rl.run.cli import run_entry
from vla_rl.training.trainer import interruptible


def test_a_run_can_be_stopped_at_any_time(tmp_path):
    folder = tmp_path / "run"
    nothing_else = ["evaluation.sampled_episodes=0", "evaluation.greedy_episodes=0", "iterations=1000"]
    program = tiny_fit.start_fit(folder, *nothing_else)
    while not (line := program.stdout.readline()).startswith("iteration 1/"):
        assert line, program.stderr.read()
    simulators = psutil.Process(program.pid).children(recursive=True)
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does: the whole process group
    _, errors = program.communicate(timeout=10)

    left = f"the policy of the last finished iteration is in {folder}/policy; go on with resume={folder}"
    assert errors == f"interrupted; {left}\n"
    assert program.returncode == 130
    assert len(simulators) == 2
    _gone, alive = psutil.wait_procs(simulators, timeout=1)
    assert not alive
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    trained = load_policy(str(folder / "policy")).state_dict()
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(value, trained[name.removeprefix("policy.")])
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= 1


@pytest.fixture
def ctrl_c_afterwards():
    """Lightning has this process ignore any further one."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


class CtrlC(L.Callback):
    def on_train_batch_start(self, *_) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)  # the signal ends it


def test_before_the_first_policy_is_written_there_is_none_to_name(tmp_path, capsys, ctrl_c_afterwards):
    trainer = make.made_trainer(tmp_path, [CtrlC()])

    def main(argv: list[str]) -> None:
        with interruptible(trainer):
            trainer.fit(make.MadeModule(), datamodule=make.MadeData())

    with pytest.raises(SystemExit) as exit:
        run_entry(main, [])
    assert exit.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_full_disk_is_one_line_whoever_meets_it(tmp_path):
    trainer = make.made_trainer(tmp_path, [])
    line = rf"^there is no room to write metrics.jsonl \(No space left on device\).* resume={tmp_path}$"
    with pytest.raises(RunError, match=line), interruptible(trainer):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")
    with pytest.raises(FileNotFoundError), interruptible(trainer):
        raise FileNotFoundError(errno.ENOENT, "not there", "metrics.jsonl")


def test_other_exits_are_left_alone(tmp_path):
    with pytest.raises(SystemExit, match="7"), interruptible(make.made_trainer(tmp_path, [])):
        raise SystemExit(7)
