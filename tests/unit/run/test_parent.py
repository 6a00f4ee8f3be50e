"""Ranks end with the process that started them, from their first lines on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vla_rl.run.parent import LAUNCHER, announce_launcher, end_with_launcher

ROOT = Path(__file__).parents[3]
RANK = "from vla_rl.run.parent import end_with_launcher; end_with_launcher(); print('on', flush=True); "
LAUNCHING = """
import os, subprocess, sys
from vla_rl.run.parent import announce_launcher
announce_launcher()
rank = subprocess.Popen([sys.executable, sys.argv[1]], env=os.environ | {"LOCAL_RANK": "1"})
print(rank.pid, flush=True)
rank.wait()
"""


def test_the_first_rank_leaves_its_id(monkeypatch):
    monkeypatch.setenv(LAUNCHER, "")
    announce_launcher()
    assert os.environ[LAUNCHER] == str(os.getpid())


@pytest.mark.parametrize("variables", [{}, {"LOCAL_RANK": "1"}, {LAUNCHER: "1", "LOCAL_RANK": "0"}, {LAUNCHER: "1"}])
def test_processes_that_are_not_such_ranks_go_on(variables, monkeypatch):
    for name in (LAUNCHER, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("vla_rl.run.parent.end_with_parent", lambda: pytest.fail("it is not a rank of Lightning's"))
    end_with_launcher()


def test_a_rank_whose_launcher_has_died_ends_before_its_imports():
    environment = os.environ | {LAUNCHER: "1", "LOCAL_RANK": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "importtime", "-m", "vla_rl.fit", "conf=pcm_object_tiny"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "process 1, which started this rank, has ended"
    assert "torch" not in done.stderr


def test_a_rank_ends_with_its_launcher(tmp_path):
    (tmp_path / "rank.py").write_text(RANK + "import time; time.sleep(60)")
    (tmp_path / "launcher.py").write_text(LAUNCHING)
    command = [sys.executable, str(tmp_path / "launcher.py"), str(tmp_path / "rank.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as launcher:
        rank = Path("/proc", launcher.stdout.readline().strip())
        assert launcher.stdout.readline() == "on\n"
        assert rank.exists()
        launcher.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while rank.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not rank.exists()
