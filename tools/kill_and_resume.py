"""Kill a run again and again, resume it each time, and compare all it leaves with the same run left alone.

    python -m tools.kill_and_resume --kills 50 --out runs/kills conf=pcm_object_tiny iterations=4

Weights, optimizer, random generators, state of the callbacks, metrics and success have to be equal in every bit;
seconds are left out. Without arguments of a run it is one of a toy world, which takes seconds (`toy_fit`).
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import toy_fit
from tests.helpers.results import result
from tests.helpers.toy_fit import Fork


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the two runs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which the run is killed")
    parser.add_argument("arguments", nargs="*", help="of vla_rl.fit")
    options = parser.parse_args()

    def start(name: str) -> Fork | subprocess.Popen[bytes]:
        if not options.arguments:
            return toy_fit.start(options.out / name, "resume=auto")
        command = [sys.executable, "-m", "vla_rl.fit", *options.arguments, f"run_dir={options.out / name}"]
        return subprocess.Popen([*command, "resume=auto"], stdout=subprocess.DEVNULL)

    began = time.monotonic()
    if start("alone").wait():
        sys.exit("the run does not even end when it is left alone")
    seconds, moments = time.monotonic() - began, random.Random(options.seed)
    killed = 0
    while killed < options.kills:
        program = start("killed")
        time.sleep(moments.uniform(0, seconds / 2))  # of a whole run; what goes on is shorter
        program.kill()
        code = program.wait()
        if code not in (0, -signal.SIGKILL):
            sys.exit(f"after {killed} kills the run ended by itself with exit status {code}")
        killed += code != 0
    if start("killed").wait():
        sys.exit("the run does not end after its last kill")
    same = result(options.out / "alone") == result(options.out / "killed")
    print(f"{killed} kills: {'equal in every bit' if same else 'DIFFERENT'}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
