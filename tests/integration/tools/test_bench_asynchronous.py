"""`tools/bench_asynchronous.py` on the smallest runs there are."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.helpers.tiny_fit import ARGUMENTS, ROOT


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.bench_asynchronous", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_what_it_measures():
    smallest = [argument for argument in ARGUMENTS if not argument.startswith("iterations=")]
    done = bench("--iterations", "3", *smallest)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
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
def test_a_mistake_is_one_line(arguments, message):
    done = bench("conf=pcm_object_tiny", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(message)
