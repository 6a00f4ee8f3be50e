"""`python -m vla_rl.doctor [conf=ppo_object_tiny] [key=value ...] [--json]`: is this machine ready for that run?

Checks versions, off-screen GL, the world's files, a simulator, devices, the checkpoint, attention and memory. Exit code
0: nothing failed (there may be warnings); 1: something did; 2: the arguments are wrong.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import asdict

from vla_rl.config.compose import compose, with_conf
from vla_rl.config.instantiate import check
from vla_rl.config.schema import Config
from vla_rl.doctor_checks import CHECKS, CheckResult, run_checks
from vla_rl.run.cli import answer_early, run_entry

DEFAULT = "ppo_object_tiny"  # what `make fit` runs
WIDTH = 120
INDENT = 6 + max(len(name) for name in CHECKS) + 2  # of the facts: after the status and the check's name


def parse(argv: list[str]) -> Config:
    return compose(with_conf([argument for argument in argv if argument != "--json"], DEFAULT))


def main(argv: list[str]) -> None:
    config = parse(argv)
    check(config)
    checks = run_checks(config)
    if "--json" in argv:
        results = list(checks)
        healthy = all(r.status != "fail" for r in results)
        print(json.dumps({"ok": healthy, "checks": [asdict(r) for r in results]}, indent=2))
    else:
        healthy = print_table(checks)
    sys.exit(0 if healthy else 1)


def print_table(results: Iterable[CheckResult]) -> bool:
    """A line or two per check as it finishes, then the sum of it. Returns whether nothing failed."""
    count = {"pass": 0, "warn": 0, "fail": 0}
    for result in results:
        count[result.status] += 1
        lead = f"{result.status:<6}{result.check:<{INDENT - 6}}"
        indent = " " * INDENT
        print(textwrap.fill(result.detail, WIDTH, initial_indent=lead, subsequent_indent=indent), flush=True)
        if result.remedy:
            print(textwrap.fill(f"-> {result.remedy}", WIDTH, initial_indent=indent, subsequent_indent=indent))
    print(", ".join(f"{number} {status}" for status, number in count.items()))
    return count["fail"] == 0


if __name__ == "__main__":
    answer_early(__doc__, parse)
    run_entry(main)
