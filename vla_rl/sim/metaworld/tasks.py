"""The 50 tasks of Meta-World: index, name, instruction, difficulty, and the groups that make suites.

Facts alone, so that a config is checked in milliseconds; nothing of Meta-World is imported. A task has the same index
in every suite: its place in MT50, which is in Meta-World's order.

Difficulty as in Seo et al., Masked World Models for Visual Control (arXiv 2206.14244, appendix F).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from vla_rl.errors import UserError, did_you_mean
from vla_rl.sim.pool import checked_tasks, named_task

NEEDED = "metaworld==3.0.0"
DIFFICULTIES = ("easy", "medium", "hard", "very_hard")


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    instruction: str
    difficulty: str


_TABLE = """
assembly                  | hard      | put the ring on the peg
basketball                | medium    | put the ball in the hoop
bin-picking               | medium    | pick up the block and place it in the other bin
box-close                 | medium    | put the lid on the box
button-press-topdown      | easy      | press the button from the top
button-press-topdown-wall | easy      | press the button behind the wall from the top
button-press              | easy      | press the button
button-press-wall         | easy      | press the button behind the wall
coffee-button             | easy      | press the button of the coffee machine
coffee-pull               | medium    | pull the mug from the coffee machine
coffee-push               | medium    | push the mug under the coffee machine
dial-turn                 | easy      | turn the dial
disassemble               | very_hard | take the ring off the peg
door-close                | easy      | close the door
door-lock                 | easy      | lock the door
door-open                 | easy      | open the door
door-unlock               | easy      | unlock the door
hand-insert               | hard      | put the block in the hole
drawer-close              | easy      | close the drawer
drawer-open               | easy      | open the drawer
faucet-open               | easy      | open the faucet
faucet-close              | easy      | close the faucet
hammer                    | medium    | push the nail in with the hammer
handle-press-side         | easy      | press the handle down from the side
handle-press              | easy      | press the handle down
handle-pull-side          | easy      | pull the handle up from the side
handle-pull               | easy      | pull the handle up
lever-pull                | easy      | pull the lever up
pick-place-wall           | very_hard | pick up the puck and place it on the goal behind the wall
pick-out-of-hole          | hard      | pick the puck out of the hole
pick-place                | hard      | pick up the puck and place it on the goal
plate-slide               | easy      | slide the plate in the cabinet
plate-slide-side          | easy      | slide the plate in the cabinet on the side
plate-slide-back          | easy      | slide the plate out of the cabinet
plate-slide-back-side     | easy      | slide the plate out of the cabinet on the side
peg-insert-side           | medium    | put the peg in the hole on the side
peg-unplug-side           | easy      | pull the peg out of the hole on the side
soccer                    | medium    | push the ball in the goal
stick-push                | very_hard | push the box with the stick
stick-pull                | very_hard | pull the box with the stick
push                      | hard      | push the puck to the goal
push-wall                 | medium    | push the puck to the goal behind the wall
push-back                 | hard      | pull the puck back to the goal
reach                     | easy      | reach the goal
reach-wall                | easy      | reach the goal behind the wall
shelf-place               | very_hard | pick up the block and place it on the shelf
sweep-into                | medium    | sweep the block in the hole
sweep                     | medium    | sweep the block off the table
window-open               | easy      | open the window
window-close              | easy      | close the window
"""

TASKS = [
    Task(name, instruction, difficulty)
    for name, difficulty, instruction in (map(str.strip, row.split("|")) for row in _TABLE.strip().splitlines())
]
_INDEX = {task.name: index for index, task in enumerate(TASKS)}
_MT10 = """
reach push pick-place door-open drawer-open drawer-close button-press-topdown peg-insert-side window-open window-close
""".split()
SUITES = {
    "mt50": list(range(len(TASKS))),
    "mt10": [_INDEX[name] for name in _MT10],
    **{level: [i for i, task in enumerate(TASKS) if task.difficulty == level] for level in DIFFICULTIES},
}


def check_installed() -> None:
    """Raise UserError unless Meta-World can be imported."""
    if importlib.util.find_spec("metaworld") is None:
        raise UserError(f"Meta-World is not installed; needed: {NEEDED}; fix: pip install 'vla-rl[metaworld]'")


def check_suite(suite: str) -> None:
    """Raise UserError unless `suite` is one of `SUITES`."""
    if suite not in SUITES:
        raise UserError(
            f"no Meta-World suite {suite!r}{did_you_mean(str(suite), SUITES)} Allowed: {', '.join(SUITES)}; e.g. "
            "sim.suite=mt10"
        )


def task_index(task: int | str) -> int:
    """The index of a task that is given by its index or its name (`button-press`, or `button-press-v3`).

    Raises:
        UserError: no such task.
    """
    allowed = f"0..{len(TASKS) - 1}, or a name such as reach, door-open; e.g. sim.tasks=[reach,door-open]"
    return named_task(task, _INDEX, version="-v3", none="Meta-World has no task", allowed=allowed)


def suite_tasks(suite: str, tasks: Sequence[int | str] | None) -> list[int]:
    """Indices of the tasks that are asked for; None = all of the suite.

    Raises:
        UserError: no such suite or task, or a task outside of the suite.
    """
    check_suite(suite)
    if tasks is None:
        return list(SUITES[suite])
    indices = checked_tasks(tasks, task_index, "[reach,door-open]")
    for index in indices:
        if index not in SUITES[suite]:
            raise UserError(f"task {TASKS[index].name} is not one of suite {suite!r}: sim.suite=mt50")
    return indices
