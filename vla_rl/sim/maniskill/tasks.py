"""The tasks of ManiSkill 3 that can be run here: index, name and instruction.

Facts alone, so that a config is checked in milliseconds; nothing of ManiSkill is imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from vla_rl.errors import UserError
from vla_rl.sim.pool import checked_tasks, named_task

NEEDED = "mani-skill==3.0.1"
SUITE = "tabletop"  # ManiSkill's own name of the group


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    instruction: str


TASKS = [
    Task("PickCube", "pick up the red cube and move it to the green ball"),
    Task("StackCube", "stack the red cube on the green cube"),
    Task("PushCube", "push the blue cube to the red and white target"),
]
_INDEX = {task.name: index for index, task in enumerate(TASKS)}


def check_installed() -> None:
    """Raise UserError unless ManiSkill can be imported."""
    if importlib.util.find_spec("mani_skill") is None:
        raise UserError(f"ManiSkill is not installed; needed: {NEEDED}; fix: pip install 'vla-rl[maniskill]'")


def task_index(task: int | str) -> int:
    """The index of a task that is given by its index or its name (`PickCube`, or `PickCube-v1`).

    Raises:
        UserError: no such task.
    """
    allowed = f"{', '.join(_INDEX)}, or 0..{len(TASKS) - 1}; e.g. sim.tasks=[PickCube,PushCube]"
    return named_task(task, _INDEX, version="-v1", none="no ManiSkill task", allowed=allowed)


def suite_tasks(suite: str, tasks: Sequence[int | str] | None) -> list[int]:
    """Indices of the tasks that are asked for; None = all.

    Raises:
        UserError: no such suite or task.
    """
    if suite != SUITE:
        raise UserError(f"no ManiSkill suite {suite!r}; allowed: {SUITE}: sim.suite={SUITE}")
    if tasks is None:
        return list(range(len(TASKS)))
    return checked_tasks(tasks, task_index, "[PickCube,PushCube]")
