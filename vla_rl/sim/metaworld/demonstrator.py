"""Meta-World's own scripted policies as demonstrators, one for each task."""

from __future__ import annotations

import warnings
from typing import Any, cast

import numpy as np

from vla_rl.sim.demonstration import Expert, ExpertEnv, to_levels
from vla_rl.sim.metaworld.env import MetaWorldEnv
from vla_rl.sim.metaworld.tasks import TASKS

SUITE = "metaworld"  # of a demonstration: its task is an index in MT50


class MetaWorldExpertEnv(ExpertEnv, MetaWorldEnv):
    """A `MetaWorldEnv` with its expert, which speaks in commands of a few sizes and a gripper that opens or closes."""

    suite = SUITE

    def expert(self) -> Expert:
        from metaworld.policies import ENV_POLICY_MAP

        policy = cast(Any, ENV_POLICY_MAP)[f"{TASKS[self.task].name}-v3"]()

        def act() -> np.ndarray:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that commands exceed 1: they are clipped
                command_A = np.clip(policy.get_action(self._state.copy()), -1.0, 1.0).astype(np.float64)
            return np.append(to_levels(command_A[:3]), 1.0 if command_A[3] > 0 else -1.0)

        return act
