"""Rollouts one iteration ahead: whose they are, that a run goes on with them bitwise, what an end leaves behind."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from pathlib import Path

import lightning as L
import psutil
import pytest
import torch

from tests.helpers import tiny_fit, toy_fit
from tests.helpers.make import made_trainer
from tests.helpers.results import result, rows, timeless
from tests.helpers.toy import ToyPolicy, ToyPool
from tests.integration.distributed.test_ranks import run_ranks
from vla_rl import fit
from vla_rl.config.schema import EvaluationConfig, GRPOConfig, OptimConfig, RolloutConfig
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.run.cli import run_entry
from vla_rl.training.grpo_module import GRPOModule

AHEAD = "rollout.asynchronous=true"
NO_UPDATE = "optim.lr=1e-30"
TRIM = [  # stage 1 ends after the second iteration, when the third one's episodes have windows already
    *("reward=policytrim", "reward.ratios=[0.5,1.0]", "reward.extend_iterations=2", "reward.switch_margin=null"),
    *("reward.baseline_episodes=4", "iterations=5", "callbacks.checkpoint.keep=9"),
]


class KeepRollouts(L.Callback):
    """`rollouts.pt` in the run folder: the tokens of each iteration's trajectories, and their windows."""

    def __init__(self) -> None:
        self.tokens, self.windows = [], []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        trajectories = [t for group in trainer.train_dataloader.groups for t in group.trajectories]
        self.tokens.append([t.actions.drawn["token"] for t in trajectories])
        self.windows.append([t.episode.window for t in trajectories])

    def on_train_end(self, trainer, pl_module) -> None:
        torch.save([self.tokens, self.windows], Path(trainer.default_root_dir) / "rollouts.pt")


class SlowPolicy(ToyPolicy):
    """Still acting when the update of the iteration before is over."""

    def act(self, *arguments):
        time.sleep(0.005)
        return super().act(*arguments)


class FailsInThread(ToyPolicy):
    """Of use until it has been copied."""

    def __deepcopy__(self, memo):
        return FailsInThread.Broken()

    class Broken(ToyPolicy):
        def act(self, *_):
            raise RuntimeError("the copy cannot act")


SLOW = "policy._target_=tests.integration.run.test_asynchronous.SlowPolicy"
KEEP = "callbacks.keep._target_=tests.integration.run.test_asynchronous.KeepRollouts"


def rollouts(folder: Path, *overrides: str) -> list:
    toy_fit.run(folder, KEEP, *overrides)
    return torch.load(folder / "rollouts.pt")


def test_an_iteration_is_collected_by_the_policy_before_the_last_update(tmp_path):
    tokens, _ = rollouts(tmp_path / "ahead", AHEAD, SLOW, "iterations=3", "evaluation.every_iterations=0")
    start, _ = rollouts(tmp_path / "start", "iterations=3", NO_UPDATE, "evaluation.every_iterations=0")
    for iteration in (0, 1):  # the start collects the first two, the second one while the first is trained on
        assert all(torch.equal(a, b) for a, b in zip(tokens[iteration], start[iteration], strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(tokens[2], start[2], strict=True))

    off_policy = [row["train/first_log_ratio_abs"] for row in rows(tmp_path / "ahead")]
    assert off_policy[0] < 1e-6 < 1e-3 < min(off_policy[1:])


def test_without_updates_nothing_changes(tmp_path):
    for name, option in (("ahead", AHEAD), ("not", "rollout.asynchronous=false")):
        toy_fit.run(tmp_path / name, option, SLOW, NO_UPDATE)  # with evaluations, which need the simulators too
    ahead, not_ahead = result(tmp_path / "ahead"), result(tmp_path / "not")
    assert ahead["rows"] == not_ahead["rows"]
    assert ahead["policy"] == not_ahead["policy"]


def test_goes_on_bitwise_though_the_stage_has_changed_since(tmp_path):
    toy_fit.run(tmp_path / "whole", AHEAD, *TRIM, KEEP)
    _, windows = torch.load(tmp_path / "whole" / "rollouts.pt")
    assert [set(of_iteration) for of_iteration in windows] == [{1, 2}, {1, 2}, {1, 2}, {2}, {2}]

    shutil.copytree(tmp_path / "whole", tmp_path / "run", symlinks=True)
    again = f"resume={tmp_path / 'run' / 'checkpoints' / 'iteration-2.ckpt'}"
    toy_fit.run(tmp_path / "run", AHEAD, *TRIM, KEEP, again)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_two_ranks_are_one(tmp_path):
    few = [AHEAD, "iterations=3", "grpo.group_filter=keep"]
    toy_fit.run(tmp_path / "alone", *few)
    run_ranks(tmp_path / "two", *few)
    for tag in ("rollout/success", "rollout/steps", "chunks/kept"):
        assert [row[tag] for row in rows(tmp_path / "two")] == [row[tag] for row in rows(tmp_path / "alone")]


def test_an_error_elsewhere_ends_the_thread(tmp_path):
    class Fails(L.Callback):
        def on_train_batch_end(self, *_):
            self.alive = ahead_alive()
            raise RuntimeError("elsewhere")

    policy, callback = SlowPolicy(), Fails()
    rollout = RolloutConfig(groups=4, group_size=5, temperature=1.0, asynchronous=True)
    grpo = GRPOConfig(minibatches=2)
    data = RolloutDataModule(ToyPool(), policy, rollout=rollout, grpo=grpo, evaluation=EvaluationConfig(), seed=3)
    trainer = made_trainer(tmp_path, [callback], iterations=2)
    with pytest.raises(RuntimeError, match="elsewhere"):
        trainer.fit(GRPOModule(policy, grpo, OptimConfig(), 1.0), datamodule=data)
    assert callback.alive
    assert not ahead_alive()


def ahead_alive() -> bool:
    return any(thread.name == "rollouts ahead" for thread in threading.enumerate())


def test_an_error_in_the_copy_ends_the_run(tmp_path):
    target = "policy._target_=tests.integration.run.test_asynchronous.FailsInThread"
    program = toy_fit.start(tmp_path / "run", AHEAD, target)
    assert program.wait() == 1
    assert "the copy cannot act" in program.errors


def test_the_small_policy_in_the_simulator_and_what_a_ctrl_c_leaves(tmp_path):
    nothing_else = ["evaluation.sampled_episodes=0", "evaluation.greedy_episodes=0", "iterations=1000"]
    argv = [*tiny_fit.ARGUMENTS, *nothing_else, "sim.workers=1", AHEAD, f"run_dir={tmp_path / 'run'}"]
    program = toy_fit.Fork(lambda: run_entry(fit.main, argv), tmp_path)
    program.wait_until_printed("iteration 2/")
    simulators = psutil.Process(program.pid).children(recursive=True)
    program.kill(signal.SIGINT)
    assert program.wait(timeout_s=20) == 130
    assert program.errors.startswith("interrupted; "), program.errors
    assert len(program.errors.splitlines()) == len(simulators) == 1
    _gone, alive = psutil.wait_procs(simulators, timeout=1)
    assert not alive


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.strategy=fsdp2", "trainer.devices=2"], "rollout.asynchronous=true needs the whole policy on every"),
        (
            ["callbacks.trace._target_=callbacks.Trace"],
            "a trace shows rollouts that the training waits for",
        ),
    ],
)
def test_what_cannot_be_ahead_is_refused(tmp_path, overrides, message):
    ranks = 2 if "trainer.devices=2" in overrides else 1
    programs = toy_fit.start_ranks(tmp_path / "run", ranks, AHEAD, *overrides)
    assert [program.wait() for program in programs] == [2] * ranks
    assert f"error: {message}" in programs[0].errors
    assert not (tmp_path / "run").exists()


def test_times_are_what_the_iteration_waited_for(tmp_path):
    toy_fit.run(tmp_path / "run", AHEAD, "iterations=3")
    metrics = rows(tmp_path / "run")
    assert all(timeless(row) != row for row in metrics)
    for row in metrics[1:]:
        assert row["split/infer_s"] == 0
        assert row["split/simulate_s"] == row["time/rollout_s"] <= row["time/iteration_s"]
