"""`ManiSkillPool`: ManiSkill simulators behind the slots of a `ProcessPool`. Options are checked before any starts."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from vla_rl.sim.maniskill.env import ManiSkillEnv
from vla_rl.sim.maniskill.tasks import SUITE, TASKS, check_installed, suite_tasks
from vla_rl.sim.maniskill.vulkan import REMEDY, check_vulkan
from vla_rl.sim.perturb.env import perturbed
from vla_rl.sim.perturb.registry import parse_perturbations
from vla_rl.sim.pool import ProcessPool, check_sizes


class ManiSkillPool(ProcessPool):
    """ManiSkill simulators. Constructing one checks the options and starts nothing.

    Args:
        suite: tabletop.
        tasks: names (PickCube, StackCube, PushCube) or indices; None = all.
        camera_px, chunk_steps, horizon: of every environment, see `ManiSkillEnv`.
        perturb: what makes it harder, see `vla_rl.sim.perturb`: blur, occlusion, noise, camera_pose, light,
            initial_state, wording.
        workers: processes; 0 = one per core that this process may use.
        timeout_s: an answer that takes longer means that the worker hangs; it is replaced. The first picture of a
            process takes software Vulkan 12 s of CPU time.

    Example:
        >>> with ManiSkillPool(tasks=["PickCube"], workers=2) as pool:
        ...     pool.start(0, Episode(uid=0, task=pool.tasks[0], init_state=3, seed=1))
        ...     event = pool.wait()[0]
    """

    idle_A = (0.0,) * 6 + (-1.0,)  # a command that stands still, with an open gripper
    turned = True
    remedy = f"pip install 'vla-rl[maniskill]', and a Vulkan driver: {REMEDY}"

    @staticmethod
    def facts(suite: str = SUITE, tasks: Sequence[int | str] | None = None, **_: Any) -> str:
        """For the doctor: what of the world is there. Raises UserError where something is missing."""
        count = len(suite_tasks(suite, tasks))
        check_installed()
        check_vulkan()
        versions = f"ManiSkill {metadata.version('mani-skill')}, SAPIEN {metadata.version('sapien')}"
        return f"{versions}, suite {suite}: {count} tasks; a Vulkan driver works"

    def __init__(
        self,
        suite: str = SUITE,
        tasks: Sequence[int | str] | None = None,
        camera_px: int = 128,
        chunk_steps: int = 8,
        horizon: int = 50,
        perturb: Sequence[str | dict] = (),
        workers: int = 0,
        timeout_s: float = 240.0,
    ) -> None:
        self.suite, self.horizon = suite, horizon
        indices = suite_tasks(suite, tasks)
        check_sizes(
            camera_px=camera_px,
            chunk_steps=chunk_steps,
            horizon=horizon,
            usual_horizon=50,
            workers=workers,
            timeout_s=timeout_s,
        )
        perturbations = parse_perturbations(perturb)
        check_installed()
        check_vulkan()
        self.task_languages = {task: TASKS[task].instruction for task in indices}
        make_env = functools.partial(ManiSkillEnv, camera_px=camera_px, chunk_steps=chunk_steps, horizon=horizon)
        super().__init__(
            perturbed(make_env, perturbations),
            tasks=indices,
            max_chunks=math.ceil(horizon / chunk_steps),
            chunk_steps=chunk_steps,
            camera_px=camera_px,
            workers=workers,
            timeout_s=timeout_s,
        )
