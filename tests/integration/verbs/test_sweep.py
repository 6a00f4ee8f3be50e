"""`vla_rl.compare sweep` on the toy world: it trains what is missing, goes on where it stopped, and reports all."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from tests.helpers import toy_fit
from vla_rl import compare, fit
from vla_rl.errors import RunError
from vla_rl.functional.statistics import SuccessRate
from vla_rl.run import sweep
from vla_rl.run.cli import run_entry

VALUES = [a for a in toy_fit.ARGUMENTS if not a.startswith(("mask.", "iterations="))] + ["iterations=1"]
MASKS = "mask=none,random+mask.budget=3"


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """What the runs of a sweep printed; they are forks of this process, which has imported what they need."""
    printed: list[str] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        _, _, verb, *argv = command
        assert verb == "vla_rl.fit"
        program = toy_fit.Fork(lambda: run_entry(fit.main, argv), tmp_path / "printed")
        status = program.wait()
        printed.append(program.printed)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(run=run))
    return printed


def test_it_trains_what_is_missing_and_reports_all(tmp_path, trained, capsys):
    compare.main(["sweep", f"out={tmp_path}", "seed=1", MASKS, *VALUES])
    none, random = tmp_path / "none" / "seed1", tmp_path / "random_budget3" / "seed1"
    # sampled and greedy: the second arm's success before training is that of the first
    assert [printed.count("before training") for printed in trained] == [2, 0]
    assert (none / "success_before.json").read_bytes() == (random / "success_before.json").read_bytes()
    # a run that was stopped before its summary: it goes on, with what it had measured
    (random / "success_before.json").write_text(json.dumps({"sampled": asdict(SuccessRate.of(7, 9))}))
    (random / "summary.json").unlink()
    checkpoint = (random / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    compare.main(["sweep", f"out={tmp_path}", "seed=1", MASKS, *VALUES, "table=markdown", "against=random B=3"])
    assert f"{none} is finished" in capsys.readouterr().out
    assert len(trained) == 3
    assert "before training" not in trained[2]
    summary = json.loads((random / "summary.json").read_text())
    assert summary["success_before"]["sampled"]["successes"] == 7
    assert (random / "checkpoints" / "last.ckpt").stat().st_mtime_ns == checkpoint
    rows = [row.split(" | ") for row in (tmp_path / "table.md").read_text().splitlines()[2:4]]
    assert [row[0] for row in rows] == ["| none", "| random B=3"]
    readme = (tmp_path / "README.md").read_text()
    assert "2 of 2 runs are finished" in readme
    assert (tmp_path / "table.md").read_text() in readme
    assert f"python -m vla_rl.fit seed=1 mask=random mask.budget=3 {' '.join(VALUES)} run_dir={random}" in readme
    assert "mujoco 3.3.2" in readme
    for name in ("success", "cost", "arms"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_a_run_that_fails_ends_the_sweep(tmp_path, capfd):
    arguments = [f"out={tmp_path}", "seed=1,2", *VALUES, "sim._target_=tests.helpers.nothing.Nothing"]
    with pytest.raises(RunError) as ended:
        compare.main(["sweep", *arguments])
    folder = tmp_path / "pcm_object_tiny" / "seed1"
    assert str(ended.value) == f"the run in {folder} ended with status 2, see above; the same command goes on"
    assert "error: no module named 'tests.helpers.nothing'" in capfd.readouterr().err
