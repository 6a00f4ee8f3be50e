"""The real program, in processes of its own, on the smallest run there is: one task, 64 control steps, groups of two.

64 steps are too few to succeed, so rewards are dealt out by hand: there must be something to learn from.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vla_rl.rollout.callback import RolloutCallback

ROOT = Path(__file__).parents[2]
CONF = "conf=pcm_object_tiny"
SMALL = [
    "iterations=2",
    "rollout.groups=2",
    "rollout.group_size=2",
    "grpo.minibatches=2",
    "mask.budget=3",
    "sim.tasks=[0]",
    "sim.horizon=64",
    "sim.workers=2",
    "reward._target_=tests.helpers.tiny_fit.EverySecond",
]
ARGUMENTS = [CONF, *SMALL]


class EverySecond(RolloutCallback):
    """Reward 1 for every second trajectory of a group."""

    def score(self, groups) -> None:
        for group in groups:
            for i, trajectory in enumerate(group.trajectories):
                trajectory.reward = float(i % 2)


def start_fit(folder: Path, *overrides: str, conf: str = CONF) -> subprocess.Popen[str]:
    """The program in a process group of its own, as in a terminal."""
    command = [sys.executable, "-m", "vla_rl.fit", conf, *SMALL, f"run_dir={folder}", *overrides]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def fit(folder: Path, *overrides: str) -> str:
    """Run it to its end; what it printed."""
    program = start_fit(folder, *overrides)
    printed, errors = program.communicate()
    assert program.returncode == 0, errors
    assert errors == ""
    return printed
