"""Record scripted demonstrations in the simulator, for supervised training; or check that the script still succeeds.

    python tools/collect_demos.py --tasks 0,5 --episodes-per-task 12 --noise 0.1 --out demos.npz
    python tools/collect_demos.py --check          # every official initial state of every task, nothing recorded

Prints the success rate of every task, and the same as one line of JSON at the end. Only successes are saved.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from vla_rl.demos.demo import Demo, save_demos
from vla_rl.errors import UserError
from vla_rl.sim.gl import check_gl
from vla_rl.sim.libero import suites
from vla_rl.sim.libero.demonstrator import DemonstrationEnv, demonstrate

EPISODES_PER_JOB = 4  # of one task, so that a worker seldom builds another environment


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--suite", default="object", help="LIBERO suite; the script solves 'object'")
    add("--tasks", default="all", help="'all', or indices: 0,5,9")
    add("--init-states", default="0:50", help="half-open range; with --placement-noise-m, of the seeds of placements")
    add("--episodes-per-task", type=int, help="how many of the initial states, from the first; default all")
    add("--noise", type=float, default=0.0, help="DART: standard deviation added to the executed xyz command")
    add("--hesitation", type=float, default=0.0, help="probability of a slow step: slack that training can remove")
    add("--placement-noise-m", type=float, default=0.0, help="objects are placed in a disc of this radius")
    add("--linger-steps", type=int, default=6, help="control steps recorded after success")
    add("--assets", default="standin", help="'standin', 'hub', or a folder with LIBERO's assets")
    add("--camera-px", type=int, default=128)
    add("--seed", type=int, default=1, help="of noise and hesitation")
    add("--workers", type=int, default=2, help="processes")
    add("--out", type=Path, help=".npz file to write")
    add("--check", action="store_true", help="only measure success; renders and records nothing")
    return parser.parse_args(argv)


def episodes(args: argparse.Namespace) -> list[tuple[int, int]]:
    """(task, initial state) of every episode asked for."""
    if bool(args.out) == args.check:
        raise UserError("give either --out demos.npz or --check")
    count = len(suites.task_names(args.suite))
    try:
        tasks = range(count) if args.tasks == "all" else [int(task) for task in args.tasks.split(",")]
        first, end = (int(bound) for bound in args.init_states.split(":"))
    except ValueError as error:
        raise UserError(
            f"cannot read --tasks {args.tasks} --init-states {args.init_states}: --tasks 0,5 --init-states 0:40"
        ) from error
    for task in tasks:
        suites.check_task(args.suite, task)
    wanted = end - first if args.episodes_per_task is None else args.episodes_per_task
    if not 1 <= wanted <= end - first:
        raise UserError(f"{wanted} episodes exceed --init-states {first}:{end}: --init-states 0:{max(wanted, 1)}")
    return [(task, state) for task in tasks for state in range(first, first + wanted)]


_env: DemonstrationEnv | None = None  # of a worker: building one takes seconds


def run_episode(args: argparse.Namespace, task: int, init_state: int) -> Demo | None:
    global _env
    if _env is None or _env.task != task:
        if _env is not None:
            _env.close()
        _env = DemonstrationEnv(
            args.suite,
            task,
            render=not args.check,
            assets=args.assets,
            camera_px=args.camera_px,
            placement_noise_m=args.placement_noise_m,
        )
    return demonstrate(
        _env,
        init_state,
        noise=args.noise,
        hesitation=args.hesitation,
        linger_steps=args.linger_steps,
        seed=args.seed,
    )


def summary(args: argparse.Namespace, planned: list[tuple[int, int]], demos: list[Demo | None]) -> dict[int, dict]:
    """Per task: episodes, successes, the failed initial states, mean control steps to success."""
    table = {}
    for task in dict.fromkeys(task for task, _ in planned):
        outcomes = [(state, demo) for (t, state), demo in zip(planned, demos, strict=True) if t == task]
        steps = [len(demo.action_TA) - args.linger_steps for _, demo in outcomes if demo is not None]
        table[task] = {
            "episodes": len(outcomes),
            "successes": len(steps),
            "failed_init_states": [state for state, demo in outcomes if demo is None],
            "mean_steps": round(sum(steps) / len(steps), 1) if steps else None,
        }
    return table


def main(args: argparse.Namespace) -> None:
    planned = episodes(args)
    check_gl()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers, which share the cores
    context = multiprocessing.get_context("spawn")  # EGL does not survive a fork
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        jobs = zip(*((args, task, state) for task, state in planned), strict=True)
        outcomes = pool.map(run_episode, *jobs, chunksize=EPISODES_PER_JOB)
        demos = list(tqdm(outcomes, total=len(planned), unit="episode", disable=None))
    table = summary(args, planned, demos)
    for task, row in table.items():
        print(f"task {task}: {row['successes']} of {row['episodes']} succeed, {row['mean_steps']} steps on average")
    if not args.check:
        saved = [demo for demo in demos if demo is not None]
        save_demos(args.out, saved)
        print(f"{len(saved)} demonstrations, {sum(len(demo.action_TA) for demo in saved)} control steps: {args.out}")
    print(json.dumps({"suite": args.suite, "noise": args.noise, "tasks": table}))


if __name__ == "__main__":
    try:
        main(arguments())
    except UserError as error:
        sys.exit(f"error: {error}")
