import subprocess
import sys

import pytest

from tests.helpers.tiny_fit import ROOT


def test_libraries_print_nothing_of_their_own():
    """peft brings bitsandbytes, which on some CPUs asks for a package that nobody needs."""
    script = "from vla_rl.run.cli import run_entry; run_entry(lambda argv: __import__('peft') and None, '', [])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("entry", ["vla_rl.fit", "vla_rl.sft"])
def test_help_does_not_wait_for_heavy_imports(entry):
    script = (
        f"import runpy, sys; sys.argv = ['{entry}', '--help']\n"
        f"try: runpy.run_module('{entry}', run_name='__main__')\n"
        "except SystemExit as e: assert not e.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "conf=    base, " in done.stdout
