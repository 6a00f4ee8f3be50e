"""The run folder and its files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from vla_rl.config.compose import compose
from vla_rl.errors import UserError
from vla_rl.functional.statistics import SuccessRate
from vla_rl.run.folder import open_run_folder, replace_folder, run_folder, write_json, write_summary
from vla_rl.run.provenance import versions

ROW = {"iteration": 0, "time/rollout_s": 1.5, "time/update_s": 0.5, "chunks/real": 20.0, "chunks/kept": 6.0}
HALF = SuccessRate(rate=0.5, successes=1, episodes=2, wilson_low=0.1, wilson_high=0.9)


def test_a_path_that_is_too_long_is_one_line(tmp_path):
    folder = run_folder(f"{tmp_path}/{'a' * 300}", "mine")
    message = "cannot write the run folder .*File name too long; name another: run_dir="
    with pytest.raises(UserError, match=message), open_run_folder(folder, compose(["conf=pcm_object_tiny"])):
        pass


def write(folder: Path) -> dict:
    path = write_summary(
        folder, conf="mine", seed=3, before={"greedy": HALF}, after={"sampled": HALF, "greedy": HALF}, seconds=9.0
    )
    assert path == folder / "summary.json"
    return json.loads(path.read_text())


def test_summary_has_success_and_what_each_iteration_paid(tmp_path):
    lines = [ROW, ROW | {"iteration": 1, "chunks/kept": 7.0, "time/update_s": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    half = {"rate": 0.5, "successes": 1, "episodes": 2, "wilson_low": 0.1, "wilson_high": 0.9}
    assert write(tmp_path) == {
        "conf": "mine",
        "seed": 3,
        "iterations": 2,
        "success_before": {"greedy": half},
        "success_after": {"sampled": half, "greedy": half},
        "rollout_s": [1.5, 1.5],
        "update_s": [0.5, 0.25],
        "chunks_real": [20.0, 20.0],
        "chunks_kept": [6.0, 7.0],
        "seconds": 9.0,
        "versions": versions(),
    }


def test_summary_of_an_evaluation_alone_has_no_iterations(tmp_path):
    summary = write(tmp_path)
    assert summary["iterations"] == 0
    assert summary["chunks_kept"] == []


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """`run_folder` tells the processes that are started later."""
    monkeypatch.setenv("VLA_RL_RUN_FOLDER", "not a folder of these tests")


def test_the_default_folder_is_named_after_conf_and_time():
    folder = run_folder(None, "pcm_object_tiny")
    assert re.fullmatch(r"runs/pcm_object_tiny/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", str(folder))
    assert not folder.exists()


def test_two_runs_of_one_conf_started_together_have_two_folders():
    assert run_folder(None, "mine") != run_folder(None, "mine")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path, monkeypatch, can_exchange):
    seen = []
    if not can_exchange:
        monkeypatch.setattr("vla_rl.run.folder.exchange", lambda one, other: False)
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: (seen.append((tmp_path / "a").exists()), rename(self, to))[1])
    for content in ("old", "new"):
        replace_folder(tmp_path / "a", lambda folder, text=content: (folder.mkdir(), (folder / text).touch()))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert seen == ([False] if can_exchange else [False, True, False])  # whether it was there, at each rename


def test_a_folder_with_a_run_in_it_is_refused(tmp_path):
    assert run_folder(str(tmp_path), "mine") == tmp_path  # it exists, but holds no run
    (tmp_path / "config.yaml").touch()
    message = (
        f"run folder {tmp_path} holds a run already; go on with it: resume={tmp_path}, "
        f"or name another: run_dir={tmp_path}-2"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        run_folder(str(tmp_path), "mine")


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)  # after everything has been written, before it counts
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"new": 1})
    assert json.loads(path.read_text()) == {"old": 1}
    monkeypatch.undo()
    write_json(path, {"new": 1})
    assert json.loads(path.read_text()) == {"new": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_run_folder_says_what_the_run_is(tmp_path):
    with open_run_folder(tmp_path / "a" / "run", compose(["conf=pcm_object_tiny", "seed=5", "resume=auto"])):
        pass
    assert "resume: null" in (tmp_path / "a" / "run" / "config.yaml").read_text()  # conf=<this file> is a new run
    assert "seed: 5" in (tmp_path / "a" / "run" / "config.yaml").read_text()
    assert json.loads((tmp_path / "a" / "run" / "versions.json").read_text())["torch"] == torch.__version__


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(UserError, match=r"cannot write the run folder .*file/run: Not a directory.*run_dir="),
        open_run_folder(tmp_path / "file" / "run", compose(["conf=pcm_object_tiny"])),
    ):
        pass


def test_a_run_folder_belongs_to_one_program_at_a_time(tmp_path):
    config = compose(["conf=pcm_object_tiny"])
    with (
        open_run_folder(tmp_path, config),
        pytest.raises(UserError, match=rf"another program runs in the run folder {tmp_path}; .*run_dir={tmp_path}-2"),
        open_run_folder(tmp_path, config, resumed=True),
    ):
        pass
    with open_run_folder(tmp_path, config, resumed=True):  # free again
        pass
    with pytest.raises(UserError, match="holds a run already"), open_run_folder(tmp_path, config):
        pass


def test_other_ranks_take_the_folder_of_the_first_and_write_nothing(tmp_path, monkeypatch):
    folder = run_folder(None, "mine")
    monkeypatch.setattr("vla_rl.run.folder.rank_zero_only.rank", 1)
    monkeypatch.setattr("vla_rl.run.folder._now", lambda: "later")
    assert run_folder(None, "mine") == folder
    with open_run_folder(tmp_path / "run", compose(["conf=pcm_object_tiny"])):
        assert not (tmp_path / "run").exists()


def test_other_ranks_take_the_folder_they_are_given_whatever_ran_before(tmp_path, monkeypatch):
    run_folder(None, "an earlier run of this process")
    monkeypatch.setattr("vla_rl.run.folder.rank_zero_only.rank", 1)
    assert run_folder(str(tmp_path), "mine") == tmp_path
    assert run_folder(None, "mine", resumed=tmp_path) == tmp_path


def test_processes_started_one_by_one_have_to_be_given_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as torchrun sets them
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="run_dir=runs/mine"):
        run_folder(None, "mine")
    assert run_folder(str(tmp_path), "mine") == tmp_path
