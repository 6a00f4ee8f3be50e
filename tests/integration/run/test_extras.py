"""Figures, TensorBoard and links are extras: where they fail a run goes on, with one warning each."""

from __future__ import annotations

import errno
import json
import os
import warnings

import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from tests.helpers import toy_fit
from vla_rl import evaluate
from vla_rl.errors import UserError
from vla_rl.run import extras

EXTRAS = [
    *("callbacks.curves._target_=callbacks.RunPlot", "callbacks.phases._target_=callbacks.PhasePlot"),
    *("callbacks.phases.every_iterations=1", "callbacks.videos._target_=callbacks.Videos", "iterations=2"),
]


def failing(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


def test_a_run_without_any_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", failing(RuntimeError("latex could not be found")))
    monkeypatch.setattr(SummaryWriter, "add_scalar", failing(OSError(errno.ENOSPC, "No space left on device")))
    monkeypatch.setattr(os, "symlink", failing(PermissionError(errno.EPERM, "Operation not permitted")))
    program = toy_fit.run(tmp_path / "run", *EXTRAS)
    for what, why in (
        ("drawing figures", "latex could not be found"),
        ("writing videos", "latex could not be found"),
        ("writing TensorBoard's file", "No space left on device"),
        ("linking checkpoints/last.ckpt", "Operation not permitted"),
    ):
        (line,) = [line for line in program.errors.splitlines() if f"{what} failed, and the run goes on" in line]
        assert why in line
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["iterations"] == 2
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    again = toy_fit.run(tmp_path / "run", *EXTRAS, "iterations=3", f"resume={tmp_path / 'run'}")
    assert "iteration 3/3" in again.printed


def test_an_evaluation_without_them(tmp_path, monkeypatch):
    """Hours of episodes are not lost to a video or a figure."""
    monkeypatch.setattr(extras, "_warned", set())
    monkeypatch.setattr(evaluate, "write_mp4", failing(RuntimeError("no encoder")))
    monkeypatch.setattr(evaluate, "draw_tasks", failing(RuntimeError("latex could not be found")))
    toys = ("policy={_target_: tests.helpers.toy.ToyPolicy}", "sim={_target_: tests.helpers.toy.ToyPool}")
    with pytest.warns(UserWarning) as warned:
        evaluate.main(["conf=pcm_object_tiny", *toys, "init_states=[0,4]", f"run_dir={tmp_path / 'run'}"])
    assert [str(w.message) for w in warned if "goes on without" in str(w.message)] == [
        "writing videos failed, and the run goes on without: RuntimeError: no encoder",
        "drawing figures failed, and the run goes on without: RuntimeError: latex could not be found",
    ]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(report["episodes"]) > 0
    assert ".mp4" not in (tmp_path / "run" / "report.html").read_text()


def test_mistakes_of_the_user_are_no_failures_of_an_extra(monkeypatch):
    with pytest.raises(UserError), extras.extra("drawing"):
        raise UserError("wrong")
    monkeypatch.setattr(extras, "_warned", set())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(3):
            with extras.extra("drawing"):
                _ = {}["a"]
    assert [str(w.message) for w in warned] == ["drawing failed, and the run goes on without: KeyError: 'a'"]
