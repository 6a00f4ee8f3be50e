"""Forward and backward of the small policy beside busy processes: OpenMP's own waiting against `GOMP_SPINCOUNT=1000`.

python tools/bench_threads.py --busy 3

By default OpenMP threads wait for each other in a busy loop. On a machine with other work to do they take their cores
from each other. Each setting is measured in a process of its own, first alone and then beside `--busy` processes that
spin. The last line is JSON: seconds (median over `--repeats`) by setting.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

CAMERA_PX, INSTRUCTION = 128, "pick up the milk and place it in the basket"
SETTINGS = {  # name -> environment
    "default": {},
    "spincount_1000": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=3, help="processes that spin beside it")
    parser.add_argument("--threads", type=int, default=2, help="of the policy")
    parser.add_argument("--rows", type=int, default=32, help="of a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.threads, options.rows, options.repeats)))
        return
    result: dict[str, object] = {name: vars(options)[name] for name in ("busy", "threads", "rows", "repeats")}
    for busy in (0, options.busy):
        with spinning(busy):
            seconds = {name: in_child(options, environment) for name, environment in SETTINGS.items()}
        print(f"{busy} busy processes: " + ", ".join(f"{name} {s:.3f} s" for name, s in seconds.items()), flush=True)
        result["beside_busy" if busy else "alone"] = seconds
    print(json.dumps(result))


def in_child(options: argparse.Namespace, setting: dict[str, str]) -> float:
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment |= {"OMP_NUM_THREADS": str(options.threads)} | setting
    numbers = [f"--{name}={vars(options)[name]}" for name in ("threads", "rows", "repeats")]
    command = [sys.executable, __file__, "--child", *numbers]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


@contextmanager
def spinning(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(threads: int, rows: int, repeats: int) -> float:
    """Median seconds of a forward and backward of the policy, after one to warm up."""
    import torch  # first: the project's own import would set GOMP_SPINCOUNT

    from vla_rl.policy.openvla_oft.tiny import random_policy
    from vla_rl.types import Observation

    torch.set_num_threads(threads)
    policy = random_policy()
    draw = torch.Generator().manual_seed(0)
    frame_NHWC = torch.randint(0, 256, (rows, CAMERA_PX, CAMERA_PX, 3), dtype=torch.uint8, generator=draw)
    observation = Observation(frame_NHWC, torch.randn(rows, 8, generator=draw), [INSTRUCTION] * rows)
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        policy.logits(observation).log_softmax(-1)[..., 0].mean().backward()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
