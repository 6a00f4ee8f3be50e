"""A run that was killed, stopped or damaged goes on as if nothing had happened, on the toy world."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import toy_fit
from tests.helpers.results import result
from vla_rl import fit
from vla_rl.run import folder as run_files
from vla_rl.run.cli import run_entry

KILLS = 5


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, float]:
    """A run folder, and how many seconds the run took."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    began = time.monotonic()
    toy_fit.run(folder)
    return folder, time.monotonic() - began


@pytest.fixture
def stopped(uninterrupted, tmp_path) -> Path:
    """The folder of a run that was killed after its third iteration."""
    folder = tmp_path / "run"
    program = toy_fit.start(folder)
    program.wait_until_printed("iteration 3/6")
    program.kill()
    assert program.wait() == -signal.SIGKILL
    return folder


def refused(folder: Path, *overrides: str) -> str:
    """The one line that a program which should not start ends with."""
    program = toy_fit.start(folder, *overrides)
    assert program.wait() == 2, program.errors
    (line,) = [line for line in program.errors.splitlines() if line.startswith("error: ")]  # after warnings, if any
    assert program.errors.splitlines()[-1] == line
    return line


def newest(folder: Path) -> Path:
    return folder / "checkpoints" / (folder / "checkpoints" / "last.ckpt").readlink()


def test_killed_at_any_moment_and_resumed_is_uninterrupted(uninterrupted, tmp_path):
    folder, seconds = uninterrupted
    moments = random.Random(0)
    killed = 0
    while killed < KILLS:
        program = toy_fit.start(tmp_path / "run", "resume=auto")
        time.sleep(moments.uniform(0, seconds / 2))
        program.kill()
        killed += program.wait() == -signal.SIGKILL
    toy_fit.run(tmp_path / "run", "resume=auto")
    assert result(tmp_path / "run") == result(folder)


def test_tensorboard_shows_every_iteration_once(tmp_path):
    toy_fit.run(tmp_path / "run", "callbacks.checkpoint.keep=9")
    again = f"resume={tmp_path / 'run' / 'checkpoints' / 'iteration-2.ckpt'}"
    toy_fit.run(tmp_path / "run", "callbacks.checkpoint.keep=9", again)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    # two optimizer steps an iteration; held out before, after the second, fourth and sixth iteration, and at the end
    assert [event.step for event in events.Scalars("rollout/success")] == [1, 3, 5, 7, 9, 11]
    assert len(events.Scalars("heldout/sampled_success")) == 5


class KilledWhileSaving(L.Callback):
    """SIGKILL instead of the rename that KILL_AT_RENAME names, of those at the end of the second iteration."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch != 1 or "KILL_AT_RENAME" not in os.environ:
            return
        left = [int(os.environ["KILL_AT_RENAME"])]
        rename = os.rename, os.replace, run_files.exchange

        def counted(which):
            def call(source, target, **options):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return rename[which](source, target, **options)

            return call

        os.rename, os.replace, run_files.exchange = counted(0), counted(1), counted(2)


class OtherDraws(toy_fit.GlobalDraws):
    """Another callback with state."""


def test_killed_between_any_two_steps_of_a_save(tmp_path, monkeypatch):
    short = ["iterations=2", "callbacks.kill._target_=tests.integration.run.test_resume.KilledWhileSaving"]
    toy_fit.run(tmp_path / "whole", *short)
    for rename in range(7):  # metrics; the policy; the checkpoint; links to it and to the best, twice
        folder = tmp_path / f"killed{rename}"
        monkeypatch.setenv("KILL_AT_RENAME", str(rename))
        assert toy_fit.start(folder, *short).wait() == -signal.SIGKILL
        monkeypatch.delenv("KILL_AT_RENAME")
        assert (folder / "policy" / "model.safetensors").is_file()
        toy_fit.run(folder, *short, "resume=auto")
        assert result(folder) == result(tmp_path / "whole")


def test_sigterm_saves_at_the_end_of_the_iteration(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    program = toy_fit.start(folder, "callbacks.checkpoint.every_iterations=4")
    program.wait_until_printed("iteration 1/6")
    program.kill(signal.SIGTERM)
    assert program.wait() == 143
    done = len((folder / "metrics.jsonl").read_text().splitlines())
    assert program.errors == f"terminated; saved after iteration {done}; go on with resume={folder}\n"
    assert newest(folder).name == f"iteration-{done}.ckpt"
    assert 1 <= done < 4
    toy_fit.run(folder, "callbacks.checkpoint.every_iterations=4", "resume=auto")
    there, here = result(uninterrupted[0]), result(folder)
    assert here["rows"] == there["rows"]
    assert here["policy"] == there["policy"]


def test_a_damaged_checkpoint_is_passed_over(uninterrupted, stopped):
    content = bytearray(newest(stopped).read_bytes())
    tensor = torch.load(newest(stopped), weights_only=True)["state_dict"]["policy.head.weight"].numpy().tobytes()
    content[content.index(tensor) + 5] ^= 1  # one bit of a weight
    newest(stopped).write_bytes(content)
    name = newest(stopped).name
    program = toy_fit.run(stopped, "resume=auto")
    assert f"{name} is damaged" in program.errors
    assert "going on from the one before it" in program.errors
    assert result(stopped) == result(uninterrupted[0])


def test_a_checkpoint_of_a_version_with_fewer_keys(stopped):
    path = newest(stopped)
    checkpoint = torch.load(path, weights_only=True)
    del (
        checkpoint["skipped_steps"],
        checkpoint["callbacks"]["Checkpoint"]["best"],
        checkpoint["callbacks"]["PCM"]["history"],
    )
    torch.save(checkpoint, path)
    program = toy_fit.run(stopped, f"resume={stopped}")
    assert "a version without PCM.history, Checkpoint.best; they begin as in a new run" in program.errors
    del checkpoint["state_dict"]["policy.head.weight"]
    torch.save(checkpoint, path)
    line = refused(stopped, f"resume={path}")
    assert "lacks 1 of 2 trained tensors (policy.head.weight): resume from another" in line


def test_a_checkpoint_without_the_whole_state_of_callbacks(stopped):
    path = newest(stopped)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]["PCM"], checkpoint["callbacks"]["GlobalDraws"]
    torch.save(checkpoint, path)
    program = toy_fit.run(stopped, f"resume={stopped}")
    assert f"{path} has no state of PCM, GlobalDraws, which begin as in a new run: if this run had" in program.errors


def test_a_callback_that_is_new_to_a_run(stopped):
    """It cannot have state yet: a line says that it begins now. One that keeps no state needs none."""
    config = yaml.safe_load((stopped / "config.yaml").read_text())
    config["callbacks"] |= {
        "draws_too": {"_target_": "tests.integration.run.test_resume.OtherDraws"},
        "without_state": {"_target_": "tests.helpers.toy_fit.RecordGradients"},
    }
    (stopped / "config.yaml").write_text(yaml.safe_dump(config))
    argv = [f"conf={stopped / 'config.yaml'}", f"resume={stopped}"]
    program = toy_fit.Fork(lambda: run_entry(fit.main, argv), stopped.parent / "again.log")
    assert program.wait() == 0, program.errors
    (line,) = [line for line in program.errors.splitlines() if "no state of" in line]
    assert "has no state of OtherDraws, which begin" in line
    state = torch.load(newest(stopped), weights_only=True)["callbacks"]
    assert 1 <= len(state["OtherDraws"]["drawn"]) < len(state["GlobalDraws"]["drawn"]) == 6


def test_one_that_was_cut_short_is_damaged_too_and_named(stopped):
    for path in (stopped / "checkpoints").glob("iteration-*"):
        path.write_bytes(path.read_bytes()[:1000])
    assert "every checkpoint in" in refused(stopped, "resume=auto")
    line = refused(stopped, f"resume={newest(stopped)}")
    assert line.startswith(f"error: checkpoint {newest(stopped)} is damaged")
    assert line.endswith(f"resume={stopped}")


def test_a_checkpoint_of_ones_choice(uninterrupted, stopped, tmp_path):
    # a third is there where the run was killed while it wrote the next
    *_, older, newer = sorted((stopped / "checkpoints").glob("iteration-*.ckpt"))
    kept, metrics = newer.read_bytes(), (stopped / "metrics.jsonl").read_bytes()
    program = toy_fit.run(stopped, f"resume={older}")
    first = next(line for line in program.printed.splitlines() if line.startswith("iteration"))
    assert first.startswith(f"iteration {int(older.stem[-1]) + 1}/6")
    assert result(stopped) == result(uninterrupted[0])
    aside = stopped / "superseded" / "1"
    assert f"is kept in {aside}" in program.printed
    assert (aside / "checkpoints" / newer.name).read_bytes() == kept
    assert (aside / "metrics.jsonl").read_bytes() == metrics
    toy_fit.start(tmp_path / "unused", "run_dir=null", f"resume={aside}").wait()
    assert result(aside) == result(uninterrupted[0])


def test_a_finished_run_may_go_on_for_longer(uninterrupted, tmp_path):
    toy_fit.run(tmp_path / "run", "iterations=4", "evaluation.every_iterations=2")
    seconds = json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"]
    toy_fit.run(tmp_path / "run", "resume=auto")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"] > seconds
    assert result(tmp_path / "run") == result(uninterrupted[0])


def test_a_run_of_another_config_is_refused_and_the_keys_are_named(stopped):
    line = refused(stopped, "resume=auto", "optim.lr=0.5", "mask.floor=0.2", "iterations=9")
    assert "these differ: mask.floor, optim.lr (" in line


def test_what_cannot_be_resumed_is_one_line(stopped, tmp_path):
    assert "nothing to resume at" in refused(stopped, f"resume={tmp_path}/no_such_run")
    assert f"{tmp_path} holds no run to resume" in refused(stopped, f"resume={tmp_path}")
    assert "give one of them only" in refused(tmp_path / "other", f"resume={stopped}")
    assert f"go on with it: resume={stopped}" in refused(stopped)


def test_a_run_folder_in_use_is_one_line(tmp_path):
    running = toy_fit.start(tmp_path / "run")
    running.wait_until_printed("iteration 1/6")
    argv = [*toy_fit.ARGUMENTS, f"run_dir={tmp_path / 'run'}", "resume=auto"]
    second = toy_fit.Fork(lambda: run_entry(fit.main, argv), tmp_path / "second.log")
    assert second.wait() == 2
    assert "another program runs in the run folder" in second.errors
    running.kill()
    running.wait()
    toy_fit.run(tmp_path / "run", "resume=auto")  # a killed program leaves no lock


def test_the_saved_config_alone_resumes(stopped):
    config = yaml.safe_load((stopped / "config.yaml").read_text())
    assert config["resume"] is None
    argv = [f"conf={stopped / 'config.yaml'}", f"resume={stopped}"]
    program = toy_fit.Fork(lambda: run_entry(fit.main, argv), stopped.parent / "again.log")
    assert program.wait() == 0, program.errors
    assert torch.load(newest(stopped), weights_only=True)["epoch"] == 5
