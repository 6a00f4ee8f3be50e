"""Draw success over iterations and over time, for one or several runs.

    python tools/plot_success.py RUN_FOLDER... --out success.png

Lines: rollout success on training states (mean of 3 iterations), one per run. Dots with bars: held-out success sampled
before and after training, with 95% Wilson intervals.
"""

from __future__ import annotations

import argparse
import json
from itertools import accumulate
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WINDOW = 3  # iterations averaged in a line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("success.png"))
    args = parser.parse_args()
    figure, (by_iteration, by_time) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for index, run in enumerate(args.runs):
        draw_run(run, by_iteration, by_time, f"C{index}")
    by_iteration.set(xlabel="iteration", ylabel="success", ylim=(0, 1))
    by_time.set(xlabel="seconds of rollouts and updates")
    by_iteration.legend(frameon=False, loc="lower right")
    for axes in (by_iteration, by_time):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out, dpi=150)
    print(args.out)


def draw_run(run: Path, by_iteration: plt.Axes, by_time: plt.Axes, colour: str) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    success = [row["rollout/success"] for row in rows]
    smooth = [sum(success[max(0, i + 1 - WINDOW) : i + 1]) / len(success[max(0, i + 1 - WINDOW) : i + 1])
              for i in range(len(success))]  # fmt: skip
    seconds = list(accumulate(row["time/rollout_s"] + row["time/update_s"] for row in rows))
    by_iteration.plot(range(1, len(rows) + 1), smooth, color=colour, label=f"seed {summary['seed']}")
    by_time.plot(seconds, smooth, color=colour)
    for axes, end in ((by_iteration, len(rows)), (by_time, seconds[-1])):
        for at, when in ((0.0, "success_before"), (end, "success_after")):
            rate = summary[when]["sampled"]
            bar = [[rate["rate"] - rate["wilson_low"]], [rate["wilson_high"] - rate["rate"]]]
            axes.errorbar(at, rate["rate"], yerr=bar, fmt="o", color=colour, capsize=3)


if __name__ == "__main__":
    main()
