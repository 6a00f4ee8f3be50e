"""`tools/bench_asynchronous.py` on the toy world."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest

from tests.helpers import toy_fit
from tools import bench_asynchronous
from vla_rl import fit
from vla_rl.run.cli import run_entry


@pytest.fixture
def forked(monkeypatch, tmp_path):
    """The tool's runs are forks of this process, which has imported what they need."""

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        _, _, verb, *argv = command
        assert verb == "vla_rl.fit"
        program = toy_fit.Fork(lambda: run_entry(fit.main, argv), tmp_path)
        return subprocess.CompletedProcess(command, program.wait())

    monkeypatch.setattr(bench_asynchronous, "subprocess", SimpleNamespace(run=run))


def test_what_it_measures(forked, capsys):
    toy = [argument for argument in toy_fit.ARGUMENTS if not argument.startswith("iterations=")]
    bench_asynchronous.main(["--iterations", "3", *toy])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    awaited, ahead = line["awaited"], line["ahead"]
    assert line["speedup"] == pytest.approx(awaited["time/iteration_s"] / ahead["time/iteration_s"])
    assert awaited["split/infer_s"] > 0 == ahead["split/infer_s"]
    assert awaited["train/first_log_ratio_abs"] < 1e-6 < ahead["train/first_log_ratio_abs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rollout.grops=3"], "error: unknown key 'rollout.grops'; did you mean 'rollout.groups'?"),
        (["--iterations", "2"], "error: the first and the last iteration do not count, got 2: --iterations 5"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        run_entry(bench_asynchronous.main, ["conf=pcm_object_tiny", *arguments])
    assert exit.value.code == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    (line,) = errors.splitlines()
    assert line.startswith(message)
