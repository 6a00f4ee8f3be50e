"""Latency and throughput of `python -m vla_rl.serve` with 1 to 8 clients at once, and what the server's memory does.

    python tools/bench_serve.py                                          # the small policy, on this machine's CPU
    python tools/bench_serve.py conf=pcm_object checkpoint=FOLDER --clients 8 --requests 200

Each client sends its next request when it has the answer to the last. What is not an option of the tool goes to the
server, which runs in a process of its own. The last line is JSON: by number of clients, milliseconds (median and 95%
quantile), answers per second and errors; and the server's memory after the first and after the last load, in MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
from websockets.sync.client import connect

from vla_rl.serving.request import IMAGES, PROMPT, STATE
from vla_rl.serving.wire import pack, unpack

INSTRUCTION = "pick up the milk and place it in the basket"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8], help="how many at once, one load each")
    parser.add_argument("--requests", type=int, default=200, help="of each client")
    parser.add_argument("--px", type=int, default=224, help="side of a picture")
    parser.add_argument("server", nargs="*", help="key=value arguments of vla_rl.serve")
    options = parser.parse_args()
    loads = {}
    memory = []
    with serving(options.server) as (url, process):
        for clients in options.clients:
            loads[clients] = load(url, clients, options.requests, options.px)
            memory.append(process.memory_info().rss / 1e6)
            row = ", ".join(f"{name} {value:.1f}" for name, value in loads[clients].items())
            print(f"{clients} clients: {row}, server {memory[-1]:.0f} MB", flush=True)
    result = {"requests": options.requests, "px": options.px, "loads": loads}
    print(json.dumps(result | {"memory_mb": [round(memory[0]), round(memory[-1])]}))


@contextmanager
def serving(arguments: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A server on a free port: its address, and its process."""
    command = [sys.executable, "-m", "vla_rl.serve", "port=0", "requests_per_s=1000000", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        if not said.startswith("serving "):
            sys.exit(server.wait())
        yield said.split()[-1], psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


def load(url: str, clients: int, requests: int, px: int) -> dict[str, float]:
    """All clients at once, each with a connection of its own."""
    seconds: list[float] = []
    errors: list[str] = []
    start = threading.Barrier(clients + 1)

    def run(seed: int) -> None:
        with connect(url, compression=None, max_size=None) as connection:
            metadata = unpack(connection.recv())
            message = pack(observation(metadata, px, seed))
            start.wait()
            for _ in range(requests):
                began = time.perf_counter()
                connection.send(message)
                answer = connection.recv()
                seconds.append(time.perf_counter() - began)
                if isinstance(answer, str):
                    errors.append(answer)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    total = time.perf_counter() - began
    if errors:
        print(errors[0], file=sys.stderr)
    return {
        "median_ms": 1e3 * float(np.median(seconds)),
        "p95_ms": 1e3 * float(np.quantile(seconds, 0.95)),
        "answers_per_s": len(seconds) / total,
        "answers": len(seconds) - len(errors),
        "errors": len(errors),
    }


def observation(metadata: dict, px: int, seed: int) -> dict:
    """Noise in the shapes that the server's policy reads."""
    rng = np.random.default_rng(seed)
    pictures = {key: rng.integers(0, 256, (px, px, 3), dtype=np.uint8) for key in IMAGES[: metadata["images"]]}
    return pictures | {STATE: rng.normal(size=metadata["state_dims"]).astype(np.float32), PROMPT: INSTRUCTION}


if __name__ == "__main__":
    main()
