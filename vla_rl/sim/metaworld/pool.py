"""`MetaWorldPool`: Meta-World simulators behind the slots of a `ProcessPool`. Options are checked before any starts."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from vla_rl.checks import check_flag
from vla_rl.sim.gl import check_gl
from vla_rl.sim.metaworld.env import LONGEST, MetaWorldEnv
from vla_rl.sim.metaworld.tasks import TASKS, check_installed, suite_tasks
from vla_rl.sim.perturb.env import perturbed
from vla_rl.sim.perturb.registry import parse_perturbations
from vla_rl.sim.pool import ProcessPool, check_sizes


class MetaWorldPool(ProcessPool):
    """Meta-World simulators. Constructing one checks the options and starts nothing.

    Args:
        suite: mt50, mt10, or a difficulty: easy, medium, hard, very_hard.
        tasks: names, or indices in MT50; None = all of the suite.
        camera_px, chunk_steps, horizon, light: of every environment, see `MetaWorldEnv`.
        perturb: what makes it harder, see `vla_rl.sim.perturb`: blur, occlusion, noise, camera_pose, light,
            initial_state, wording.
        workers: processes; 0 = one per core that this process may use.
        timeout_s: an answer that takes longer means that the worker hangs; it is replaced.

    Example:
        >>> with MetaWorldPool(tasks=["reach", "door-open"], workers=2) as pool:
        ...     pool.start(0, Episode(uid=0, task=pool.tasks[0], init_state=3, seed=1))
        ...     event = pool.wait()[0]
    """

    idle_A = (0.0, 0.0, 0.0, -1.0)  # a command that stands still, with an open gripper
    turned = True
    remedy = "pip install 'vla-rl[metaworld]'"

    @staticmethod
    def facts(suite: str = "mt50", tasks: Sequence[int | str] | None = None, **_: Any) -> str:
        """For the doctor: what of the world is there. Raises UserError where something is missing."""
        count = len(suite_tasks(suite, tasks))
        check_installed()
        return f"Meta-World {metadata.version('metaworld')}, suite {suite}: {count} tasks"

    def __init__(
        self,
        suite: str = "mt50",
        tasks: Sequence[int | str] | None = None,
        camera_px: int = 128,
        chunk_steps: int = 8,
        horizon: int = 100,
        light: bool = True,
        perturb: Sequence[str | dict] = (),
        workers: int = 0,
        timeout_s: float = 120.0,
    ) -> None:
        self.suite, self.horizon = suite, horizon
        indices = suite_tasks(suite, tasks)
        check_sizes(
            camera_px=camera_px,
            chunk_steps=chunk_steps,
            horizon=horizon,
            usual_horizon=100,
            longest=LONGEST,
            workers=workers,
            timeout_s=timeout_s,
        )
        check_flag("sim.light", light, example=True)
        check_installed()
        check_gl()
        self.task_languages = {task: TASKS[task].instruction for task in indices}
        make_env = functools.partial(
            MetaWorldEnv, camera_px=camera_px, chunk_steps=chunk_steps, horizon=horizon, light=light
        )
        super().__init__(
            perturbed(make_env, parse_perturbations(perturb)),
            tasks=indices,
            max_chunks=math.ceil(horizon / chunk_steps),
            chunk_steps=chunk_steps,
            camera_px=camera_px,
            workers=workers,
            timeout_s=timeout_s,
        )
