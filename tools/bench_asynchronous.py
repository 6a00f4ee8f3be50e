"""What collecting one iteration ahead saves: the same training with `rollout.asynchronous` off and on.

    python tools/bench_asynchronous.py conf=pcm_object_tiny
    python tools/bench_asynchronous.py --iterations 8 conf=pcm_object

Runs `python -m vla_rl.fit` twice, one after the other, without evaluations, and prints one line of JSON last. For both
ways: seconds per iteration and their split, without the first iteration, which collects twice, and the last, which does
not collect ahead; the success of the rollouts; and how far the policy had moved from the one that acted before the
first optimizer step (`first_log_ratio_abs`, 0 where rollouts are awaited) and on average, with the share of clipped
ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from vla_rl.config.compose import compose
from vla_rl.errors import RunError, UserError
from vla_rl.run.cli import run_entry
from vla_rl.run.provenance import versions

TAGS = (
    *("time/iteration_s", "time/rollout_s", "time/update_s", "split/simulate_s", "split/infer_s", "split/idle_s"),
    *("rollout/success", "train/first_log_ratio_abs", "train/log_ratio_abs", "train/clip_fraction"),
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=5, help="at least 3 (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="conf= and any other value")
    args = parser.parse_intermixed_args(argv)
    if args.iterations < 3:
        raise UserError(f"the first and the last iteration do not count, got {args.iterations}: --iterations 5")
    unmeasured = [f"evaluation.{name}=0" for name in ("sampled_episodes", "greedy_episodes", "every_iterations")]
    fixed = [f"iterations={args.iterations}", *unmeasured]
    compose([*args.overrides, *fixed])  # a mistake is found now
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: measure(Path(folder) / name, [*args.overrides, *fixed, f"rollout.asynchronous={option}"])
            for name, option in (("awaited", "false"), ("ahead", "true"))
        }
    speedup = found["awaited"]["time/iteration_s"] / found["ahead"]["time/iteration_s"]
    print(json.dumps({"speedup": speedup, **found, "overrides": args.overrides, "versions": versions()}))


def measure(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Means over the iterations but the first and the last."""
    done = subprocess.run([sys.executable, "-m", "vla_rl.fit", *overrides, f"run_dir={folder}"], check=False)
    if done.returncode:
        raise RunError(f"the run with {overrides[-1]} ended with exit status {done.returncode}; see its output above")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()][1:-1]
    return {tag: sum(row.get(tag, 0.0) for row in rows) / len(rows) for tag in TAGS}


if __name__ == "__main__":
    run_entry(main)
