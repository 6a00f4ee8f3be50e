"""Libraries print nothing of their own."""

import subprocess
import sys

from tests.helpers.tiny_fit import ROOT


def test_libraries_print_nothing_of_their_own():
    """peft brings bitsandbytes, which on some CPUs asks for a package that nobody needs."""
    script = "from vla_rl.run.cli import run_entry; run_entry(lambda argv: __import__('peft') and None, [])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
