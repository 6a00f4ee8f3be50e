"""The types of the code are checked as `make types` does it, while the other core is busy with other tests."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.tiny_fit import ROOT


def test_mypy_finds_nothing():
    checked = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
