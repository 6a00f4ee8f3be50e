"""`LiberoPool`: LIBERO simulators behind the slots of a `ProcessPool`. The options are checked before any starts."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any

from vla_rl.checks import check_choice, check_count, check_flag
from vla_rl.errors import UserError
from vla_rl.sim.gl import check_gl
from vla_rl.sim.libero import suites
from vla_rl.sim.libero.env import ROBOT_GEOMS, STEPPINGS, LiberoEnv, check_placement_noise
from vla_rl.sim.perturb.env import perturbed
from vla_rl.sim.perturb.registry import parse_perturbations
from vla_rl.sim.pool import ProcessPool, check_sizes, checked_tasks


class LiberoPool(ProcessPool):
    """LIBERO simulators. Constructing one checks the options and starts nothing.

    Args:
        suite: object, spatial, goal, 10 or 90; one of LIBERO-Pro's, as pro:object_swap; or a folder of .bddl files,
            with files of initial states beside them or placements drawn.
        tasks: indices in the suite; None = all.
        assets, camera_px, wrist_camera, chunk_steps, horizon: of every environment, see `LiberoEnv`.
        settle_steps, placement_noise_m, robot_geoms, stepping: of every environment, see `LiberoEnv`.
        perturb: what makes it harder, see `vla_rl.sim.perturb`: blur, occlusion, noise, camera_pose, light,
            initial_state, wording.
        workers: processes; 0 = one per core that this process may use.
        timeout_s: an answer that takes longer means that the worker hangs; it is replaced.

    Example:
        >>> with LiberoPool(tasks=[0, 5], workers=2) as pool:
        ...     pool.start(0, Episode(uid=0, task=5, init_state=3, seed=1))
        ...     event = pool.wait()[0]
    """

    idle_A = (0.0,) * 6 + (-1.0,)  # a command that stands still, with an open gripper
    remedy = "sim.assets=standin, sim.assets=hub, or sim.assets=FOLDER with LIBERO's own assets"

    @staticmethod
    def facts(suite: str = "object", tasks: Sequence[int] | None = None, assets: str = "standin", **_: Any) -> str:
        """For the doctor: what of the world is there. Raises UserError where something is missing."""
        suite = str(suite)
        for task in range(len(suites.task_names(suite))) if tasks is None else tasks:
            suites.language(suite, task)
            suites.init_states(suite, task)
        folder = suites.resolve_assets(assets)
        return f"LIBERO, suite {suite}: tasks and initial states read; assets {assets}: {folder}"

    def __init__(
        self,
        suite: str = "object",
        tasks: Sequence[int] | None = None,
        assets: str = "standin",
        camera_px: int = 128,
        wrist_camera: bool = False,
        chunk_steps: int = 8,
        horizon: int | None = None,
        settle_steps: int = 10,
        placement_noise_m: float = 0.0,
        robot_geoms: str = "collision",
        stepping: str = "lean",
        perturb: Sequence[str | dict] = (),
        workers: int = 0,
        timeout_s: float = 120.0,
    ) -> None:
        suite = str(suite)  # sim.suite=10 is a number to YAML
        suites.check_suite(suite)
        self.suite = suite
        if tasks is None:
            tasks = list(range(len(suites.task_names(suite))))
        else:
            tasks = checked_tasks(tasks, functools.partial(suites.task_index, suite), "[0,5]")
        self.horizon = suites.horizon(suite) if horizon is None else horizon
        check_sizes(
            camera_px=camera_px,
            chunk_steps=chunk_steps,
            horizon=self.horizon,
            usual_horizon=suites.horizon(suite),
            workers=workers,
            timeout_s=timeout_s,
        )
        check_count("sim.settle_steps", settle_steps, 10, least=0)
        check_choice("sim.robot_geoms", robot_geoms, ROBOT_GEOMS)
        check_flag("sim.wrist_camera", wrist_camera, example=False)
        check_choice("sim.stepping", stepping, STEPPINGS)
        _check_assets(suite, tasks, assets)
        check_placement_noise(suite, placement_noise_m)
        check_gl()
        self.task_languages = {task: suites.language(suite, task) for task in tasks}
        make_env = functools.partial(
            LiberoEnv,
            suite,
            assets=assets,
            camera_px=camera_px,
            wrist_camera=wrist_camera,
            chunk_steps=chunk_steps,
            horizon=self.horizon,
            settle_steps=settle_steps,
            placement_noise_m=placement_noise_m,
            robot_geoms=robot_geoms,
            stepping=stepping,
        )
        super().__init__(
            perturbed(make_env, parse_perturbations(perturb)),
            tasks=tasks,
            max_chunks=math.ceil(self.horizon / chunk_steps),
            chunk_steps=chunk_steps,
            init_states=None if placement_noise_m else _init_states(suite, tasks),
            camera_px=camera_px,
            images=2 if wrist_camera else 1,
            workers=workers,
            timeout_s=timeout_s,
        )


def _init_states(suite: str, tasks: Sequence[int]) -> int | None:
    """How many initial states every task has; None = they are drawn."""
    counts = [len(states) for task in tasks if (states := suites.init_states(suite, task)) is not None]
    return min(counts, default=None)


def _check_assets(suite: str, tasks: Sequence[int], assets: str) -> None:
    if not isinstance(assets, str | os.PathLike):
        raise UserError(f"sim.assets must be standin, hub or a folder, got {assets!r}: sim.assets=standin")
    if assets == "standin" and suite in suites.SUITES and suite not in suites.STANDIN_SUITES:
        raise UserError(
            f"stand-in assets exist for suites {', '.join(suites.STANDIN_SUITES)}, not for {suite!r}: sim.assets=hub "
            "(downloads LIBERO's)"
        )
    if assets == "standin" and suite not in suites.SUITES:
        for task in tasks:
            if lacking := suites.standin_lacks(suite, task):
                raise UserError(
                    f"stand-in assets lack {', '.join(lacking)} of task {task} of suite {suite!r}: sim.assets=hub "
                    "(downloads LIBERO's), or leave the task out: sim.tasks=[...]"
                )
    suites.resolve_assets(assets)
