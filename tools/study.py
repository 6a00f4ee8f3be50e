"""The study: the same training with different masks, over several seeds, on the small policy in the real simulator.

    python tools/study.py --out benchmarks/masks
    python tools/study.py --arms none,random,pcm --seeds 1,2 --out benchmarks/short iterations=4

Every run is `python -m vla_rl.fit conf=pcm_object_tiny` with its mask and seed; key=value arguments go to all of them.
Runs of one seed see the same initial states, and all collect the same number of episodes; success before training is
measured in the first of them. Finished runs are kept: the same command again goes on where it stopped, and a run that
was cut off starts afresh. OUT gets a folder for each run, and after each run `table.md`, the figures of
tools/compare_runs.py, and `README.md` with the commands and versions.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from callbacks.monitors.save_figures import write_comparison
from vla_rl.config.compose import compose
from vla_rl.errors import UserError
from vla_rl.run.compare import Run, table
from vla_rl.run.folder import BEFORE

CONF = "conf=pcm_object_tiny"
ARMS = ("full_padded", "none", "random", "random_padded", "single_phase", "pcm", "pcm_paper_literal")
WITHOUT_BUDGET = ("full_padded", "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all runs, as fit.py takes them")
    parser.add_argument("--arms", default=",".join(ARMS), help="names in conf/mask (%(default)s)")
    parser.add_argument("--seeds", default="1,2,3,4,5", help="(%(default)s)")
    parser.add_argument(
        "--budget", type=int, default=8, help="chunks kept of a trajectory, for arms that have a budget"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        commands = plan(args.arms.split(","), args.seeds.split(","), args.budget, args.out, args.overrides)
    except UserError as e:
        print("error:", e, file=sys.stderr)
        sys.exit(2)
    for folder, command in commands.items():
        if finished(folder):
            print(f"{folder} is finished", flush=True)
            continue
        shutil.rmtree(folder, ignore_errors=True)
        share_start(folder, commands)
        print(" ".join(command), flush=True)
        subprocess.run([sys.executable, *command[1:]], check=True)
        report(commands, args.out)
    report(commands, args.out)


def plan(arms: list[str], seeds: list[str], budget: int, out: Path, overrides: list[str]) -> dict[Path, list[str]]:
    """Run folder -> its command, seed by seed: all arms have the first seeds when the time is up.

    Raises:
        UserError: an argument that fit.py would refuse; nothing has been run yet.
    """
    commands = {}
    for seed in seeds:
        for arm in arms:
            folder = out / arm / f"seed{seed}"
            masked = [] if arm in WITHOUT_BUDGET else [f"mask.budget={budget}"]
            arguments = [CONF, f"mask={arm}", *masked, f"seed={seed}", *overrides, f"run_dir={folder}"]
            compose(arguments)
            commands[folder] = ["python", "-m", "vla_rl.fit", *arguments]
    return commands


def finished(folder: Path) -> bool:
    return (folder / "summary.json").exists()


def share_start(folder: Path, commands: Iterable[Path]) -> None:
    """Runs of one seed begin with the same policy and see the same held-out episodes: its success is measured once."""
    for other in commands:
        if other.name == folder.name and finished(other):
            folder.mkdir(parents=True)
            shutil.copy(other / BEFORE, folder)
            return


def report(commands: dict[Path, list[str]], out: Path) -> None:
    """Table, figures and README of the runs that are finished."""
    done = [folder for folder in commands if finished(folder)]
    runs = [Run.read(folder) for folder in done]
    write_comparison(runs, out)
    versions = json.loads((done[0] / "versions.json").read_text())
    lines = [
        "# Masks compared",
        "",
        f"{len(done)} of {len(commands)} runs. Success is held out, of all seeds together, with 95% Wilson intervals;",
        "chunks and seconds are sums over a run, and means over seeds.",
        "",
        table(runs),
        *(f"![{name}]({name}.png)\n" for name in ("success", "cost", "arms")),
        "Versions: " + ", ".join(f"{package} {version}" for package, version in versions.items()),
        "",
        "```",
        *(" ".join(commands[folder]) for folder in done),
        "```",
        "",
    ]
    (out / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
