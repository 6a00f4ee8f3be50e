"""Ranks that end with the process that started them, also when that one dies while they still import.

Lightning starts the ranks of one machine as children of the first. Imports take seconds, in which the first may die;
nobody would end the others then. So the first one leaves its process id in the environment, and the others look at it
in their first lines. Only light imports here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

LAUNCHER = "VLA_RL_LAUNCHER_PID"


def announce_launcher() -> None:
    """In the first rank: leave its process id to the ranks that it will start."""
    os.environ[LAUNCHER] = str(os.getpid())


def end_with_launcher() -> bool:
    """In the first lines of a verb: if this is a rank that another one has started, end with that one.

    Returns:
        Whether it is such a rank.
    """
    launcher = os.environ.pop(LAUNCHER, None)
    if launcher is None or os.environ.get("LOCAL_RANK", "0") == "0":
        return False
    end_with_parent()
    if os.getppid() != int(launcher):  # it died before the kernel was told
        sys.exit(f"process {launcher}, which started this rank, has ended")
    return True


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, however that ends."""
    pr_set_pdeathsig = 1  # of linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
