"""`play_experts`: the episodes of `python -m vla_rl.record` with the scripted demonstrators, in other processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm

from vla_rl.config.schema import RecordConfig
from vla_rl.demos.demo import Demo
from vla_rl.errors import UserError
from vla_rl.evaluation.playing import states_of_task
from vla_rl.sim.demonstration import ExpertEnv, demonstrate
from vla_rl.sim.gl import check_gl
from vla_rl.sim.libero import suites
from vla_rl.sim.metaworld import tasks as metaworld

EPISODES_PER_JOB = 4  # of one task, so that a worker seldom builds another environment


def episodes(options: RecordConfig) -> list[tuple[int, int]]:
    """(task, initial state) of every episode asked for."""
    if bool(options.out) == options.check:
        raise UserError("give either out=demos.npz or check=true")
    if options.decoding is not None:
        raise UserError("decoding is of a policy, and the scripted demonstrator plays: checkpoint=FOLDER")
    if options.suite in metaworld.SUITES:
        tasks = metaworld.suite_tasks(options.suite, options.tasks)
    elif options.tasks is None:
        tasks = list(range(len(suites.task_names(options.suite))))
    else:
        tasks = [suites.task_index(options.suite, task) for task in options.tasks]
    return [(task, state) for task in tasks for state in range(*states_of_task(options))]


def play_experts(options: RecordConfig, take: Callable[[Demo], None]) -> None:
    """Every episode by the scripted demonstrator, handed over in order."""
    planned = episodes(options)
    check_gl()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers, which share the cores
    context = multiprocessing.get_context("spawn")  # EGL does not survive a fork
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        jobs = zip(*((options, task, state) for task, state in planned), strict=True)
        outcomes = pool.map(run_episode, *jobs, chunksize=EPISODES_PER_JOB)
        for demo in tqdm(outcomes, total=len(planned), unit="episode", disable=None):
            take(demo)


_env: ExpertEnv | None = None  # of a worker: building one takes seconds


def run_episode(options: RecordConfig, task: int, init_state: int) -> Demo:
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
