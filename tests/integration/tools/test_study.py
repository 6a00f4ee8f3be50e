"""`tools/study.py` on the smallest runs there are: it resumes, and reports what is finished."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from tests.helpers.tiny_fit import ARGUMENTS, ROOT
from vla_rl.functional.statistics import SuccessRate

SMALLEST = [a for a in ARGUMENTS if not a.startswith(("conf=", "mask.", "iterations="))] + [
    "iterations=1", "evaluation.sampled_episodes=2", "evaluation.greedy_episodes=0"
]  # fmt: skip


def study(out, *arguments):
    command = [sys.executable, "tools/study.py", "--out", str(out), "--budget", "3", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_it_runs_what_is_missing_and_reports_all(tmp_path):
    first = study(tmp_path, "--arms", "none", "--seeds", "1", *SMALLEST)
    assert first.returncode == 0, first.stderr
    before = (tmp_path / "none" / "seed1" / "summary.json").stat().st_mtime_ns
    start = tmp_path / "none" / "seed1" / "success_before.json"
    start.write_text(json.dumps({"sampled": asdict(SuccessRate.of(7, 9))}))
    cut_off = tmp_path / "random" / "seed1"
    cut_off.mkdir(parents=True)
    (cut_off / "config.yaml").touch()  # of a run that was stopped
    second = study(tmp_path, "--arms", "none,random", "--seeds", "1", *SMALLEST)
    assert second.returncode == 0, second.stderr
    assert f"{tmp_path}/none/seed1 is finished" in second.stdout
    assert (tmp_path / "none" / "seed1" / "summary.json").stat().st_mtime_ns == before
    table = (tmp_path / "table.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in table[2:]] == ["| none", "| random B=3"]
    # 4 episodes of 8 chunks, 3 kept of each
    assert [row.split(" | ")[5:7] for row in table[2:]] == [["32", "100%"], ["12", "38%"]]
    readme = (tmp_path / "README.md").read_text()
    assert "2 of 2 runs" in readme and "\n".join(table) in readme and "mujoco 3.3.2" in readme
    assert f"python -m vla_rl.fit conf=pcm_object_tiny mask=random mask.budget=3 seed=1 {' '.join(SMALLEST)}" in readme
    for name in ("success", "cost", "arms"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert "before training" not in second.stdout  # the first run of the seed has measured it
    assert json.loads((cut_off / "summary.json").read_text())["success_before"]["sampled"]["successes"] == 7
    states = [
        json.loads((tmp_path / arm / "seed1" / "summary.json").read_text())["chunks_real"] for arm in ("none", "random")
    ]
    assert states[0] == states[1]  # the first iteration is the same in every arm


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "randm"], "error: no mask named 'randm'; did you mean 'random'?"),
        (["itrations=3"], "error: unknown key 'itrations'; did you mean 'iterations'?"),
    ],
)
def test_what_is_refused(tmp_path, arguments, message):
    done = study(tmp_path, *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(message)
    assert not list(tmp_path.iterdir())
