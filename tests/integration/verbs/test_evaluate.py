"""`python -m vla_rl.evaluate` from start to end in the real simulator, and what it refuses before it starts one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from tests.helpers.toy_fit import Fork
from vla_rl import evaluate, fit
from vla_rl.policy import load_policy, save_trained
from vla_rl.run.cli import run_entry

TINY = "conf=pcm_object_tiny"


def run(folder: Path, *arguments: str) -> str:
    argv = [TINY, *arguments, f"run_dir={folder}"]
    program = Fork(lambda: run_entry(evaluate.main, argv), folder.with_suffix(".log"))
    assert program.wait() == 0, program.errors
    return program.printed


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, str]:
    """The same evaluation twice, with other numbers of simulators: the folders, and what the first printed."""
    root = tmp_path_factory.mktemp("evaluate")
    spoilt = load_policy("shipped:object_tiny")
    torch.nn.init.zeros_(spoilt.model.language_model.lm_head.weight)  # every action is as probable as any other
    save_trained(spoilt, root / "spoilt")
    both = f"checkpoint=[shipped:object_tiny,{root / 'spoilt'}]"
    arguments = [both, "init_states=[10000,10003]", "videos.first=1", "sim.horizon=144"]
    printed = run(root / "one", *arguments, "sim.workers=2")
    run(root / "two", *arguments, "sim.workers=1")
    return root / "one", root / "two", printed


def frames(video: Path) -> list[np.ndarray]:
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_it_prints_both_and_the_paired_test(runs):
    folder, _, printed = runs
    number = r"[+-]?\d\.\d{3}"
    effort = r", \d+\.\d steps and \d+\.\d calls of a success"
    expected = [
        rf"run folder {folder}",
        rf"A shipped:object_tiny: success {number} \[{number}, {number}\] \(\d/3\)({effort})?",
        rf"B .*/spoilt: success 0\.000 \[{number}, {number}\] \(0/3\)",
        rf"B against A on the same episodes: {number} \[{number}, {number}\], 0 gained, \d lost, p = {number}",
        rf"report {folder}/report.html",
    ]
    for line, pattern in zip(printed.splitlines(), expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_the_same_evaluation_writes_the_same_report(runs):
    one, two, _ = runs
    files = {str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()}
    reports = {"report.json", "report.md", "report.html"}
    figures = {f"figures/{name}.png" for name in ("tasks", "outcomes", "episodes_A", "episodes_B")}
    videos = {file for file in files if file.startswith("videos/")}
    assert files == reports | figures | videos | {"config.yaml", "versions.json", "timing.json", ".lock"}
    for name in sorted(reports | figures):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert len(videos) >= 3
    for name in sorted(videos):  # the encoder's last bits differ from run to run, what it shows does not
        for a, b in zip(frames(one / name), frames(two / name), strict=True):
            assert abs(a.astype(int) - b).mean() < 1  # of 255


def test_the_report_holds_every_episode(runs):
    found = json.loads((runs[0] / "report.json").read_text())
    assert [(e["task"], e["init_state"]) for e in found["episodes"]] == [(0, 10000), (0, 10001), (0, 10002)]
    for checkpoint in found["checkpoints"]:
        outcomes = [e["success"][checkpoint["label"]] for e in found["episodes"]]
        assert checkpoint["overall"]["successes"] == sum(outcomes)
    assert all(e["steps"]["B"] == 144 for e in found["episodes"])  # the horizon: it never succeeds
    (task,) = found["checkpoints"][0]["tasks"]
    assert task["instruction"] == "pick up the alphabet soup and place it in the basket"


def test_windows_run_the_same_episodes(tmp_path, capsys):
    argv = [TINY, "windows=[8,3]", "init_states=[10000,10001]", "sim.horizon=16", "sim.workers=1", "videos.failures=0"]
    run_entry(evaluate.main, [*argv, "videos.first=1", f"run_dir={tmp_path / 'run'}"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" shipped:")[0] for line in lines[1:3]] == ["window 8", "window 3"]
    assert lines[3].startswith("window 3 against window 8 on the same episodes: +0.000")
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [arm["window"] for arm in found["checkpoints"]] == [8, 3]
    assert found["episodes"][0]["steps"] == {"window 8": 16, "window 3": 16}
    for label, pictures in (("window 8", 2 + 1 + 8), ("window 3", 6 + 1 + 8)):  # decisions, the end, standing still
        (video,) = (tmp_path / "run" / "videos" / label).iterdir()
        assert len(frames(video)) == pictures


def test_pictures_and_videos_show_something(runs):
    folder = runs[0]
    assert imread(folder / "figures" / "episodes_A.png").std() > 0.05
    names = sorted(path.name for path in (folder / "videos" / "B").iterdir())
    assert names == [f"task0_state{10000 + i}_failure_{i}.mp4" for i in range(2)]  # the first, and two failures
    assert len(frames(folder / "videos" / "B" / names[0])) == 18 + 1 + 8  # decisions, the end, standing still


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Run a program in this process; the line on stderr that it ends with."""
    monkeypatch.setattr("vla_rl.sim.pool.Worker", lambda *_: pytest.fail("a simulator was started"))

    def run(*arguments: str, main=evaluate.main) -> str:
        with pytest.raises(SystemExit) as exit:
            run_entry(main, [TINY, *arguments, f"run_dir={tmp_path / 'run'}"])
        assert exit.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert not (tmp_path / "run" / "report.json").exists()
        return line

    return run


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["protocol=of"], "did you mean 'oft'?"),
        (["protocol=oft", "sim.horizon=100"], "leave sim.horizon out"),
        (["protocol=oft", "init_states=[0,51]"], "init_states=[0,50]"),
        (["resume=runs/mine"], "resume=null"),
        (["windows=[9]"], "windows=[4,8]"),
        (["decoding=beam"], "decoding must be one of greedy, sampled"),
        (["checkpoint=/nonexistent"], "missing checkpoint '/nonexistent'"),
        (["checkpoint=[shipped:object_tiny,/nonexistent]"], "missing checkpoint '/nonexistent'"),
        (["checkpoint=[x,x]"], "checkpoint=[FOLDER_A,FOLDER_B]"),
        (["sim.suite=10"], "sim.assets=hub"),
        (["sim.chunk_steps=10"], "sim.chunk_steps=8"),
        (["decoding=greedy", "evaluation.greedy_episodes=20000"], "evaluation.greedy_episodes=10000"),
    ],
)
def test_one_line_names_the_fix(refused, arguments, fix):
    assert fix in refused(*arguments)


def test_a_refused_evaluation_leaves_no_folder(refused, tmp_path):
    refused("checkpoint=[shipped:object_tiny,/nonexistent]")
    assert not (tmp_path / "run").exists()  # the same run_dir works at the next try


def test_an_old_report_is_not_overwritten(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert f"run_dir={tmp_path / 'run-2'}" in refused()


def test_training_does_not_take_what_evaluation_does(refused):
    assert "unknown key 'checkpoint'" in refused("checkpoint=shipped:object_tiny", main=fit.main)
