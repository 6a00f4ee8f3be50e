"""`tools/evaluate_windows.py` in the real simulator, and what it refuses."""

from __future__ import annotations

import json

import pytest

from tests.helpers import toy_fit
from tests.integration.distributed.test_ranks import STRATEGIES, run_ranks
from tools import evaluate_windows
from vla_rl.run.cli import run_entry

SHORT = ["conf=policytrim_object_tiny", "sim.horizon=16", "sim.workers=1"]


def test_each_window_runs_the_same_episodes(capsys):
    evaluate_windows.main(["--windows", "4,8", *SHORT, "--episodes", "2"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [f"window {w}: success 0.000 [0.000, 0.658] (0/2)" for w in (4, 8)]  # 16 steps are too few
    assert json.loads(last) == [{"window": w, "episodes": 2, "steps": []} for w in (4, 8)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_count_every_episode_once(tmp_path, capsys, strategy):
    asked = ["--windows", "1,2", "--episodes", "5"]
    evaluate_windows.main([*asked, *toy_fit.ARGUMENTS])
    alone = capsys.readouterr().out
    assert [len(result["steps"]) for result in json.loads(alone.splitlines()[-1])] == [5, 5]
    run_ranks(tmp_path / "run", *asked, f"trainer.strategy={strategy}", main=evaluate_windows.main)
    assert [(tmp_path / "run.log" / f"rank{rank}.out").read_text() for rank in (0, 1)] == [alone, ""]


@pytest.mark.parametrize("windows", ["16", "0,8", "8;4", ""])
def test_windows_the_policy_does_not_have(windows, capsys):
    with pytest.raises(SystemExit) as exit:
        run_entry(evaluate_windows.main, "about", ["--windows", windows, *SHORT])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("8 control steps at a time: --windows 4,8")
