"""Compare finished runs: print a table, and draw success, cost, budgets and ablations.

    python tools/compare_runs.py RUN_FOLDER... --out comparison

Runs of the same mask and budget are one arm, whatever their seed: success is pooled over its episodes (95% Wilson
intervals), chunks and seconds are means over its runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from callbacks.monitors.save_figures import write_comparison
from vla_rl.errors import UserError
from vla_rl.run.compare import Run, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that fit.py wrote")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder for table.md and the figures")
    args = parser.parse_args()
    try:
        runs = [Run.read(folder) for folder in args.runs]
    except UserError as e:
        print("error:", e, file=sys.stderr)
        sys.exit(2)
    write_comparison(runs, args.out)
    print(table(runs), end="")
    print(f"figures and table in {args.out}")


if __name__ == "__main__":
    main()
