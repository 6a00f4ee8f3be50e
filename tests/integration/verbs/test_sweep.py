"""`vla_rl.compare sweep` on the toy world: it trains what is missing, goes on where it stopped, and reports all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

from tests.helpers import toy_fit
from tests.helpers.tiny_fit import ROOT
from vla_rl.functional.statistics import SuccessRate

VALUES = [a for a in toy_fit.ARGUMENTS if not a.startswith(("mask.", "iterations="))] + ["iterations=1"]
MASKS = "mask=none,random+mask.budget=3"


def sweep(out, *arguments):
    command = [sys.executable, "-m", "vla_rl.compare", "sweep", f"out={out}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_it_trains_what_is_missing_and_reports_all(tmp_path):
    first = sweep(tmp_path, "seed=1", MASKS, *VALUES)
    assert first.returncode == 0, first.stderr
    none, random = tmp_path / "none" / "seed1", tmp_path / "random_budget3" / "seed1"
    assert first.stdout.count("before training") == 2  # sampled and greedy: the second arm's is that of the first
    assert (none / "success_before.json").read_bytes() == (random / "success_before.json").read_bytes()
    # a run that was stopped before its summary: it goes on, with what it had measured
    (random / "success_before.json").write_text(json.dumps({"sampled": asdict(SuccessRate.of(7, 9))}))
    (random / "summary.json").unlink()
    trained = (random / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    second = sweep(tmp_path, "seed=1", MASKS, *VALUES, "table=markdown", "against=random B=3")
    assert second.returncode == 0, second.stderr
    assert f"{none} is finished" in second.stdout
    assert "before training" not in second.stdout
    summary = json.loads((random / "summary.json").read_text())
    assert summary["success_before"]["sampled"]["successes"] == 7
    assert (random / "checkpoints" / "last.ckpt").stat().st_mtime_ns == trained
    rows = [row.split(" | ") for row in (tmp_path / "table.md").read_text().splitlines()[2:4]]
    assert [row[0] for row in rows] == ["| none", "| random B=3"]
    readme = (tmp_path / "README.md").read_text()
    assert "2 of 2 runs are finished" in readme
    assert (tmp_path / "table.md").read_text() in readme
    assert f"python -m vla_rl.fit seed=1 mask=random mask.budget=3 {' '.join(VALUES)} run_dir={random}" in readme
    assert "mujoco 3.3.2" in readme
    for name in ("success", "cost", "arms"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_a_run_that_fails_ends_the_sweep(tmp_path):
    failing = sweep(tmp_path, "seed=1,2", *VALUES, "sim._target_=tests.helpers.nothing.Nothing")
    assert failing.returncode == 1
    line = failing.stderr.splitlines()[-1]
    assert line == f"error: the run in {tmp_path}/pcm_object_tiny/seed1 ended with status 2, see above; " + (
        "the same command goes on"
    )
