import mmap
import subprocess
import sys

from callbacks.monitors.memory import host_bytes

MB = 10**6


def test_memory_of_this_process_counts():
    before = host_bytes()
    held = mmap.mmap(-1, 100 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # new pages, whatever was freed before
    held.write(b"x" * (100 * MB))
    assert 90 * MB < host_bytes() - before < 150 * MB
    held.close()


def test_memory_of_what_it_started_counts():
    before = host_bytes()
    script = f"held = b'x' * {200 * MB}; print('ready', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        assert 180 * MB < host_bytes() - before < 280 * MB  # this process may free something meanwhile
    finally:
        child.communicate("")
