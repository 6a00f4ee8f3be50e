"""Control steps per second of one core: this project's environment against the world's own evaluation loop.

    python tools/bench_rollout.py --assets FOLDER          # LIBERO's own meshes; without it, stand-in assets
    python tools/bench_rollout.py --world metaworld --task 19 --steps 100
    python tools/bench_rollout.py --world maniskill --task 0 --steps 48

LIBERO: four loops play the same episodes (official initial states, 10 settle steps, the same small random actions):
    new_env      LIBERO's `OffScreenRenderEnv`, two 256 px cameras drawn at every control step, a new one per episode
    reused_env   the same, built once, `env.reset()` per episode
    ours         `LiberoEnv`, same assets, robot drawn as LIBERO does, one 256 px frame per decision of 8 control steps
    ours_light   `LiberoEnv` as the default run has it: stand-in assets, simplified robot, 128 px
Meta-World: three loops play the same seeds and actions:
    stock        Meta-World's environment and renderer, one 224 px frame drawn at every control step
    ours         `MetaWorldEnv` as sim=metaworld has it: 224 px, one frame per decision of 8 control steps
    ours_light   `MetaWorldEnv` as sim=metaworld_tiny has it: without shadows, 128 px
ManiSkill: two loops play the same seeds and actions:
    stock        ManiSkill's environment (physx_cpu, software Vulkan), one 128 px frame observed at every control step
    ours         `ManiSkillEnv` as sim=maniskill has it: 128 px, one frame per decision of 8 control steps
`frame_cpu_ms` is the cost of a frame: of the same loop with a decision at every control step, less that of 8.
A rate is control steps of the policy per second of CPU time of the process, with everything that an episode costs
(resets, settle steps, frames, and for `new_env` building). CPU time, all threads included, on one pinned core: it
equals wall time on an idle machine, and other users of a busy one do not change it. The JSON line has both.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

# Before anything heavy is imported. Software GL on the calling thread: on one core its threads only cost.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))
os.environ["LP_NUM_THREADS"] = "0"

import numpy as np

from vla_rl.errors import UserError
from vla_rl.sim.decision import DecisionEnv
from vla_rl.sim.gl import check_gl
from vla_rl.sim.libero import suites
from vla_rl.sim.libero.env import SETTLE_ACTION, LiberoEnv
from vla_rl.sim.maniskill import tasks as maniskill
from vla_rl.sim.maniskill.env import CONTROL_MODE, ROBOT, ManiSkillEnv
from vla_rl.sim.maniskill.vulkan import check_vulkan
from vla_rl.sim.metaworld import tasks as metaworld
from vla_rl.sim.metaworld.env import CAMERA, MetaWorldEnv

CHUNK_STEPS = 8
LIBERO_CAMERA_PX = 256
METAWORLD_CAMERA_PX = 224
MANISKILL_CAMERA_PX = 128
SIMULATORS = {  # world -> its packages
    "libero": ("robosuite", "hf-libero", "numba", "mujoco"),
    "metaworld": ("metaworld", "mujoco"),
    "maniskill": ("mani-skill", "sapien"),
}
ACTION_SCALE = 0.3


def main() -> None:
    args = parse_arguments()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    report = {"libero": of_libero, "metaworld": of_metaworld, "maniskill": of_maniskill}[args.world](args)
    report |= {
        "task": args.task,
        "episodes": args.episodes,
        "steps": args.steps,
        "cores_used": 1,
        "cores": os.cpu_count(),
        "gl": "vulkan" if args.world == "maniskill" else os.environ["MUJOCO_GL"],
        "versions": {name: version(name) for name in (*SIMULATORS[args.world], "numpy")},
    }
    print(json.dumps(report))


def of_libero(args: argparse.Namespace) -> dict[str, Any]:
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
    return {
        "ratio": round(rate["ours"] / rate["new_env"], 2),
        "ratio_reused_env": round(rate["ours"] / rate["reused_env"], 2),
        "ratio_standin": round(rate["ours_light"] / rate["new_env"], 2),
        "ratio_standin_is": "ours_light (stand-in assets) / new_env (the assets given)",
        **figures,
        "assets": "standin" if args.assets == "standin" else "folder",
        "suite": args.suite,
    }


def of_metaworld(args: argparse.Namespace) -> dict[str, Any]:
    command_SA = np.random.default_rng(0).uniform(-1, 1, (args.steps, 4)).astype(np.float32)
    figures = {"stock": measure(metaworld_loop(args, command_SA), args)}
    for name, options in {"ours": {"camera_px": METAWORLD_CAMERA_PX, "light": False}, "ours_light": {}}.items():
        figures[name] = with_frames(functools.partial(MetaWorldEnv, args.task, **options), args, command_SA)
    rate = {name: figure["steps_per_cpu_s"] for name, figure in figures.items()}
    return {"ratio": round(rate["ours"] / rate["stock"], 2), **figures}


def of_maniskill(args: argparse.Namespace) -> dict[str, Any]:
    command_SA = np.random.default_rng(0).uniform(-1, 1, (args.steps, 7)).astype(np.float32)
    make_env = functools.partial(ManiSkillEnv, args.task, camera_px=MANISKILL_CAMERA_PX)
    figures = {
        "stock": measure(maniskill_loop(args, command_SA), args),
        "ours": with_frames(make_env, args, command_SA),
    }
    rate = {name: figure["steps_per_cpu_s"] for name, figure in figures.items()}
    return {"ratio": round(rate["ours"] / rate["stock"], 2), **figures}


def with_frames(
    make_env: Callable[..., DecisionEnv], args: argparse.Namespace, command_SA: np.ndarray
) -> dict[str, float]:
    """The figures of this project's environment, and what one of its frames costs."""
    found = measure(decision_loop(make_env, args, command_SA, CHUNK_STEPS), args)
    often = measure(decision_loop(make_env, args, command_SA, 1), args)
    more_ms = often["cpu_ms_per_step"] - found["cpu_ms_per_step"]  # a frame, less an 8th of one
    return found | {"frame_cpu_ms": round(more_ms * CHUNK_STEPS / (CHUNK_STEPS - 1), 3)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", choices=SIMULATORS, default="libero")
    parser.add_argument("--suite", default="object", help="of LIBERO")
    parser.add_argument("--task", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120, help="control steps per episode, without the settle steps")
    parser.add_argument("--assets", default="standin", help="folder with LIBERO's own assets; default: stand-ins")
    args = parser.parse_args()
    try:
        if args.world == "maniskill":
            maniskill.task_index(args.task)
            maniskill.check_installed()
            check_vulkan()
            return args
        check_gl()
        if args.world == "metaworld":
            metaworld.task_index(args.task)
            metaworld.check_installed()
        else:
            suites.check_task(args.suite, args.task)
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


def metaworld_loop(args: argparse.Namespace, command_SA: np.ndarray) -> Callable[[int], None]:
    """Meta-World's own environment and renderer, stepped as evaluations do."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    name = f"{metaworld.TASKS[args.task].name}-v3"
    size = {"width": METAWORLD_CAMERA_PX, "height": METAWORLD_CAMERA_PX}
    env = ALL_V3_ENVIRONMENTS[name](render_mode="rgb_array", camera_name=CAMERA, **size)
    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True

    def episode(index: int) -> None:
        env.seed(index)
        env.reset()
        for action_A in command_SA:
            env.step(action_A)
            env.render()

    return episode


def maniskill_loop(args: argparse.Namespace, command_SA: np.ndarray) -> Callable[[int], None]:
    """ManiSkill's own environment and observations, stepped as evaluations do."""
    import gymnasium
    import mani_skill.envs  # noqa: F401 - registers the tasks

    env = gymnasium.make(
        f"{maniskill.TASKS[args.task].name}-v1",
        robot_uids=ROBOT,
        obs_mode="rgb",
        control_mode=CONTROL_MODE,
        sim_backend="physx_cpu",
        render_backend="cpu",
        sensor_configs={"width": MANISKILL_CAMERA_PX, "height": MANISKILL_CAMERA_PX},
    )

    def episode(index: int) -> None:
        env.reset(seed=index)
        for action_A in command_SA:
            env.step(action_A)

    return episode


def decision_loop(
    make_env: Callable[..., DecisionEnv], args: argparse.Namespace, command_SA: np.ndarray, chunk_steps: int
) -> Callable[[int], None]:
    """This project's environment, stepped as its workers do."""
    env = make_env(horizon=args.steps, chunk_steps=chunk_steps)

    def episode(index: int) -> None:
        env.reset(options={"init_state": index})
        for start in range(0, args.steps, chunk_steps):
            env.step(command_SA[start : start + chunk_steps])

    return episode


if __name__ == "__main__":
    main()
