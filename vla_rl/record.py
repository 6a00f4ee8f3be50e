"""`python -m vla_rl.record out=demos.npz tasks=[0,5]`: demonstrations by the scripted demonstrator, for vla_rl.sft.

    check=true            only measure success; renders and records nothing (instead of out=)
    suite=object          LIBERO-Object; or of Meta-World: mt50, mt10, easy, medium, hard, very_hard
    tasks=[0,5]           default: all of the suite; Meta-World's also by name, tasks=[reach,door-open]
    init_states=[0,40]    half-open range, of each task; with placement_noise_m, of the seeds of placements
    episodes_per_task=12  how many of the initial states, from the first; default: all
    noise=0.1             DART: standard deviation added to the executed xyz command
    hesitation=0.6        probability of a slow step: slack that training can remove
    placement_noise_m=0.02  objects are placed in a disc of this radius
    linger_steps=6        control steps recorded after success
    horizon=100           control steps after which a demonstration has failed; default: the suite's
    assets=standin        or hub, or a folder with LIBERO's assets; camera_px=128; seed=1; workers=2 processes

Prints the success rate of every task, and the same as one line of JSON at the end. Only successes are saved.
"""

from __future__ import annotations

from vla_rl.run.cli import answer_early, run_entry

if __name__ == "__main__":
    answer_early(__doc__, parse=None)  # before the imports below, which take seconds

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vla_rl.checks import check_count, check_number
from vla_rl.config.compose import only_options
from vla_rl.config.schema import RecordConfig
from vla_rl.demos.demo import Demo
from vla_rl.demos.formats.npz import save_demos
from vla_rl.errors import UserError
from vla_rl.sim.demonstration import ExpertEnv, demonstrate
from vla_rl.sim.gl import check_gl
from vla_rl.sim.libero import suites
from vla_rl.sim.metaworld import tasks as metaworld

EPISODES_PER_JOB = 4  # of one task, so that a worker seldom builds another environment


def main(argv: list[str]) -> None:
    options = only_options(RecordConfig, argv)
    check_options(options)
    planned = episodes(options)
    check_gl()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers, which share the cores
    context = multiprocessing.get_context("spawn")  # EGL does not survive a fork
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        jobs = zip(*((options, task, state) for task, state in planned), strict=True)
        outcomes = pool.map(run_episode, *jobs, chunksize=EPISODES_PER_JOB)
        demos = list(tqdm(outcomes, total=len(planned), unit="episode", disable=None))
    table = summary(options, planned, demos)
    for task, row in table.items():
        print(f"task {task}: {row['successes']} of {row['episodes']} succeed, {row['mean_steps']} steps on average")
    if options.out:
        saved = [demo for demo in demos if demo is not None]
        save_demos(Path(options.out), saved)
        print(f"{len(saved)} demonstrations, {sum(len(demo.action_TA) for demo in saved)} control steps: {options.out}")
    print(json.dumps({"suite": options.suite, "noise": options.noise, "tasks": table}))


def check_options(options: RecordConfig) -> None:
    """Raise UserError for what would fail, or mean nothing, after the first episodes; makes the folder of `out`."""
    default = RecordConfig()
    for name, least in (("workers", 1), ("camera_px", 1), ("linger_steps", 0), ("seed", 0)):
        check_count(name, getattr(options, name), getattr(default, name), least=least)
    for name, most in (("noise", None), ("placement_noise_m", None), ("hesitation", 1)):
        check_number(name, getattr(options, name), 0.1, least=0, most=most)
    if options.horizon is not None:
        check_count("horizon", options.horizon, 100)
    if options.suite in metaworld.SUITES:
        metaworld.check_installed()
        for name in ("placement_noise_m", "assets"):
            if getattr(options, name) != getattr(default, name):
                raise UserError(f"{name} is of LIBERO, not of Meta-World: {name}={getattr(default, name)}")
    if options.out is None:
        return
    out = Path(options.out)
    if out.suffix != ".npz" or out.is_dir():
        raise UserError(f"out must name an .npz file, got {out} (out=demos.npz)")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"the folder of {out} cannot be made: {e.strerror} (out=demos.npz)") from e


def episodes(options: RecordConfig) -> list[tuple[int, int]]:
    """(task, initial state) of every episode asked for."""
    if bool(options.out) == options.check:
        raise UserError("give either out=demos.npz or check=true")
    if options.suite in metaworld.SUITES:
        tasks = metaworld.suite_tasks(options.suite, options.tasks)
    elif options.tasks is None:
        tasks = list(range(len(suites.task_names(options.suite))))
    else:
        tasks = [suites.task_index(options.suite, task) for task in options.tasks]
    first, end = options.init_states
    wanted = end - first if options.episodes_per_task is None else options.episodes_per_task
    if not 1 <= wanted <= end - first:
        raise UserError(f"{wanted} episodes exceed init_states=[{first},{end}]: init_states=[0,{max(wanted, 1)}]")
    return [(task, state) for task in tasks for state in range(first, first + wanted)]


_env: ExpertEnv | None = None  # of a worker: building one takes seconds


def run_episode(options: RecordConfig, task: int, init_state: int) -> Demo | None:
    global _env
    if _env is None or _env.task != task:
        if _env is not None:
            _env.close()
        _env = make_env(options, task)
    return demonstrate(
        _env,
        init_state,
        noise=options.noise,
        hesitation=options.hesitation,
        linger_steps=options.linger_steps,
        seed=options.seed,
    )


def make_env(options: RecordConfig, task: int) -> ExpertEnv:
    """The task's environment with its expert."""
    common: dict[str, Any] = {"render": not options.check, "camera_px": options.camera_px}
    if options.horizon is not None:
        common["horizon"] = options.horizon
    if options.suite in metaworld.SUITES:
        from vla_rl.sim.metaworld.demonstrator import MetaWorldExpertEnv

        return MetaWorldExpertEnv(task, **common)
    from vla_rl.sim.libero.demonstrator import DemonstrationEnv

    return DemonstrationEnv(
        options.suite, task, assets=options.assets, placement_noise_m=options.placement_noise_m, **common
    )


def summary(options: RecordConfig, planned: list[tuple[int, int]], demos: list[Demo | None]) -> dict[int, dict]:
    """Per task: episodes, successes, the failed initial states, mean control steps to success."""
    table = {}
    for task in dict.fromkeys(task for task, _ in planned):
        outcomes = [(state, demo) for (t, state), demo in zip(planned, demos, strict=True) if t == task]
        steps = [len(demo.action_TA) - options.linger_steps for _, demo in outcomes if demo is not None]
        table[task] = {
            "episodes": len(outcomes),
            "successes": len(steps),
            "failed_init_states": [state for state, demo in outcomes if demo is None],
            "mean_steps": round(sum(steps) / len(steps), 1) if steps else None,
        }
    return table


if __name__ == "__main__":
    run_entry(main)
