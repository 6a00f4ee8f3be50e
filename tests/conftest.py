"""One thread for each test process and the programs it starts.

A run repeats to the bit only with as many threads as before, and tests compare runs in this process with runs in forks
of it, which have one (an OpenMP team does not survive a fork). It is faster, too: two test processes share the cores.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, so before that
