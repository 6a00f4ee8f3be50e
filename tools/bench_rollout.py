"""Control steps per second of one core: this project's environment against LIBERO's own evaluation loop.

    python tools/bench_rollout.py --assets FOLDER          # LIBERO's own meshes; without it, stand-in assets

Four loops play the same episodes (official initial states, 10 settle steps, the same small random actions):
    new_env      LIBERO's `OffScreenRenderEnv`, two 256 px cameras drawn at every control step, a new one per episode
    reused_env   the same, built once, `env.reset()` per episode
    ours         `LiberoEnv`, same assets, robot drawn as LIBERO does, one 256 px frame per decision of 8 control steps
    ours_light   `LiberoEnv` as the default run has it: stand-in assets, simplified robot, 128 px
A rate is control steps of the policy per second of CPU time of the process, with everything that an episode costs
(resets, settle steps, frames, and for `new_env` building). CPU time, all threads included, on one pinned core: it
equals wall time on an idle machine, and other users of a busy one do not change it. The JSON line has both.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

# Before anything heavy is imported. Software GL on the calling thread: on one core its threads only cost.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))
os.environ["LP_NUM_THREADS"] = "0"

import numpy as np

from vla_rl.errors import UserError
from vla_rl.sim.gl import check_gl
from vla_rl.sim.libero import suites
from vla_rl.sim.libero.env import SETTLE_ACTION, LiberoEnv

CHUNK_STEPS = 8
LIBERO_CAMERA_PX = 256
ACTION_SCALE = 0.3


def main() -> None:
    args = parse_arguments()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    command_SA = np.random.default_rng(0).uniform(-ACTION_SCALE, ACTION_SCALE, (args.steps, 7))
    figures = {
        "new_env": measure(libero_loop(args, command_SA, new_env=True), args),
        "reused_env": measure(libero_loop(args, command_SA, new_env=False), args),
        "ours": measure(
            our_loop(args, command_SA, args.assets, camera_px=LIBERO_CAMERA_PX, robot_geoms="visual"), args
        ),
        "ours_light": measure(our_loop(args, command_SA, "standin", camera_px=128, robot_geoms="collision"), args),
    }
    rate = {name: figure["steps_per_cpu_s"] for name, figure in figures.items()}
    report = {
        "ratio": round(rate["ours"] / rate["new_env"], 2),
        "ratio_reused_env": round(rate["ours"] / rate["reused_env"], 2),
        "ratio_standin": round(rate["ours_light"] / rate["new_env"], 2),
        "ratio_standin_is": "ours_light (stand-in assets) / new_env (the assets given)",
        **figures,
        "assets": "standin" if args.assets == "standin" else "folder",
        "suite": args.suite,
        "task": args.task,
        "episodes": args.episodes,
        "steps": args.steps,
        "cores_used": 1,
        "cores": os.cpu_count(),
        "gl": os.environ["MUJOCO_GL"],
        "versions": {name: version(name) for name in ("mujoco", "robosuite", "hf-libero", "numba", "numpy")},
    }
    print(json.dumps(report))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", default="object")
    parser.add_argument("--task", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120, help="control steps per episode, without the settle steps")
    parser.add_argument("--assets", default="standin", help="folder with LIBERO's own assets; default: stand-ins")
    args = parser.parse_args()
    try:
        suites.check_task(args.suite, args.task)
        check_gl()
        suites.resolve_assets(args.assets)
    except UserError as error:
        sys.exit(str(error))
    return args


def measure(episode: Callable[[int], None], args: argparse.Namespace) -> dict[str, float]:
    """Play the episodes after an unmeasured one, which compiles and warms caches."""
    episode(0)
    cpu, wall = time.process_time(), time.perf_counter()
    for index in range(args.episodes):
        episode(index)
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
    steps = args.episodes * args.steps
    return {
        "steps_per_cpu_s": round(steps / cpu_s, 2),
        "steps_per_wall_s": round(steps / wall_s, 2),
        "cpu_ms_per_step": round(1000 * cpu_s / steps, 3),
    }


def libero_loop(args: argparse.Namespace, command_SA: np.ndarray, *, new_env: bool) -> Callable[[int], None]:
    """LIBERO's own environment, stepped as its evaluation does."""
    suites.boot(args.assets)
    from libero.libero.envs.env_wrapper import OffScreenRenderEnv

    states = suites.official_init_states(args.suite, args.task)

    def build() -> OffScreenRenderEnv:
        env = OffScreenRenderEnv(
            bddl_file_name=str(suites.bddl_file(args.suite, args.task)),
            camera_heights=LIBERO_CAMERA_PX,
            camera_widths=LIBERO_CAMERA_PX,
        )
        env.seed(0)
        return env

    reused = None if new_env else build()

    def episode(index: int) -> None:
        env = reused or build()
        env.reset()
        env.set_init_state(states[index])
        for action in [*[SETTLE_ACTION] * 10, *command_SA]:
            env.step(action)
        if new_env:
            env.close()

    return episode


def our_loop(
    args: argparse.Namespace, command_SA: np.ndarray, assets: str, *, camera_px: int, robot_geoms: str
) -> Callable[[int], None]:
    """This project's environment, stepped as its workers do: built once, one frame per decision."""
    env = LiberoEnv(
        args.suite, args.task, assets=assets, camera_px=camera_px, robot_geoms=robot_geoms, horizon=args.steps
    )

    def episode(index: int) -> None:
        env.reset(options={"init_state": index})
        for start in range(0, args.steps, CHUNK_STEPS):
            env.step(command_SA[start : start + CHUNK_STEPS])

    return episode


if __name__ == "__main__":
    main()
