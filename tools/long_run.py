"""Do memory and time per episode stay flat over many episodes?

    python tools/long_run.py --episodes 1000 conf=pcm_object_tiny sim.horizon=24

Runs sampled episodes through the simulators and the policy, as training does, in blocks of 100. Prints a line for each
block, and one line of JSON last: memory of the program and its simulators after each block, and seconds of CPU time per
episode in it (other users of a busy machine do not change these). Short episodes are the harder test: they reset more.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing

import lightning as L
import psutil

from callbacks.monitors.memory import MB, host_bytes
from vla_rl.config.compose import compose
from vla_rl.config.instantiate import build, check
from vla_rl.rollout.collect import collect
from vla_rl.rollout.plan import heldout_episodes
from vla_rl.run.cli import run_entry
from vla_rl.run.provenance import versions

BLOCK = 100  # episodes


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="conf= and any other value")
    args = parser.parse_intermixed_args(argv)
    config = compose(args.overrides)
    check(config)
    L.seed_everything(config.seed, verbose=False)
    memory_mb, cpu_s = [], []
    with closing(build(config.sim, "sim")) as pool:
        policy = build(config.policy, "policy")
        planned = heldout_episodes(pool.tasks, config.rollout.heldout_init_states, args.episodes, config.seed)
        for first in range(0, len(planned), BLOCK):
            episodes = planned[first : first + BLOCK]
            began = cpu_seconds()
            collect(pool, policy, episodes, temperature=config.rollout.temperature)
            memory_mb.append(round(host_bytes() / MB))
            cpu_s.append(round((cpu_seconds() - began) / len(episodes), 3))
            print(f"episodes {first + len(episodes)}: {memory_mb[-1]} MB, {cpu_s[-1]} s of CPU time each", flush=True)
    print(json.dumps({"episodes": args.episodes, "memory_mb": memory_mb, "cpu_s_per_episode": cpu_s,
                      "sim": config.sim, "versions": versions()}))  # fmt: skip


def cpu_seconds() -> float:
    """CPU time so far of this process and of all it has started."""
    process = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in [process, *process.children(recursive=True)])


if __name__ == "__main__":
    run_entry(main)
