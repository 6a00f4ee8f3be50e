"""tools/bench_threads.py on a small batch: its last line has a time for every setting."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow  # and it keeps a core busy that other tests need
def test_the_last_line_has_every_setting():
    command = [sys.executable, "tools/bench_threads.py", "--busy", "1", "--rows", "2", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["busy"] == 1 and result["threads"] == 2
    for load in ("alone", "beside_busy"):
        assert set(result[load]) == {"default", "spincount_1000", "passive"}
        assert all(seconds > 0 for seconds in result[load].values())
