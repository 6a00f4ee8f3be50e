"""One thread for each test process and the programs it starts.

A run repeats to the bit only with as many threads as before, and tests compare runs in this process with runs in forks
of it, which have one (an OpenMP team does not survive a fork). It is faster, too: two test processes share the cores.
"""

import gc
import os
import signal

import vla_rl  # noqa: F401  # sets how long OpenMP threads spin, which like the next is read when torch is imported

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub, which takes half a minute to fail without a network

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell, where programs would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is imported by now stays, so the garbage collector need not search it again: robosuite has it search
    everything whenever a simulator is built."""
    gc.collect()
    gc.freeze()
