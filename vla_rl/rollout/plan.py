"""Which episodes an iteration and an evaluation run; refuses initial states that simulators lack, groups of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vla_rl.config.schema import RolloutConfig
from vla_rl.distributed.seeding import seeded_generator, stable_seed
from vla_rl.errors import UserError
from vla_rl.types import Episode, SimulatorPool

RESAMPLED = 10**9  # uids of a round of replacements start this much higher: unique, whatever else is collected


def plan_iteration(
    rollout: RolloutConfig, tasks: Sequence[int], seed: int, iteration: int, attempt: int = 0
) -> list[Episode]:
    """An iteration's episodes over all ranks. They depend on the seed and the iteration alone, so that runs with
    different masks see the same states. Tasks take turns; states are drawn uniformly.

    Args:
        attempt: 0, or the round of replacements: the same tasks from other states.
    """
    again = [attempt] if attempt else []
    generator = seeded_generator(seed, "initial states", iteration, *again)
    low, high = rollout.train_init_states
    groups, size = rollout.groups, rollout.group_size
    states = torch.randint(low, high, (groups,), generator=generator).tolist()
    first = iteration * groups * size + attempt * RESAMPLED
    return [
        Episode(
            uid=(uid := first + g * size + i),
            task=tasks[(iteration * groups + g) % len(tasks)],
            init_state=states[g],
            seed=stable_seed(seed, "actions", uid),
            group=g,
        )
        for g in range(groups)
        for i in range(size)
    ]


def heldout_episodes(tasks: Sequence[int], init_states: Sequence[int], episodes: int, seed: int) -> list[Episode]:
    """`episodes` pairs (task, initial state), tasks taking turns and states in order. They depend on nothing else, so
    every policy is measured on the same ones. Past the last pair they begin again with other seeds.
    """
    low, high = init_states
    return [
        Episode(
            uid=i,
            task=tasks[i % len(tasks)],
            init_state=low + (i // len(tasks)) % (high - low),
            seed=stable_seed(seed, "evaluation", i),
        )
        for i in range(episodes)
    ]


def check_init_states(pool: SimulatorPool, given: str, end: int, remedy: str) -> None:
    """Raise UserError where a range that ends before `end` goes beyond what the simulators have of a task.

    Args:
        given: the range as its option has it: "rollout.train_init_states=[0,60]".
    """
    if pool.init_states is not None and end > pool.init_states:
        raise UserError(f"{given} goes beyond the {pool.init_states} initial states of a task: {remedy}")


def check_compared(rollout: RolloutConfig, who: str, otherwise: str) -> None:
    """Raise UserError for `who`, which compares the episodes of a group, where a group is one episode.

    Args:
        otherwise: the override of who stays with such groups: "mask=random".
    """
    if rollout.group_size == 1:
        raise UserError(
            f"{who} compares the episodes of a group, and rollout.group_size=1 leaves nothing to compare: "
            f"rollout.group_size=8, or {otherwise}"
        )
