"""An environment under perturbations, in the worker: everything after it sees what the policy sees.

Draws belong to two seeds. What is of the world (camera, light, start, wording) is drawn from the task and the initial
state: an initial state is always perturbed in the same way, so that the episodes of a group stay comparable. What is of
a picture is drawn from the episode's own seed and the decision. Neither depends on the worker or on what ran before.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from vla_rl.sim.perturb.base import Perturbation
from vla_rl.sim.perturb.world import Scenery
from vla_rl.sim.worker import MakeEnv


class PerturbedEnv(gymnasium.Wrapper):
    """An environment at decision level, perturbed.

    Args:
        env: has `task`, `cameras` (the first one is moved), and takes the reset's options that a perturbation adds.
        perturbations: by name, applied in this order.
    """

    def __init__(self, env: Any, perturbations: Mapping[str, Perturbation]) -> None:
        super().__init__(env)
        self._perturbations = perturbations
        self._camera = env.cameras[0]
        self._scenery = Scenery(self._camera.model)
        self._task = int(env.task)
        self._seed = self._init_state = self._decision = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        assert seed is not None and options is not None, "a perturbed episode needs its seed and its initial state"
        self._seed, self._init_state, self._decision = seed, options["init_state"], 0
        self._scenery.restore()
        for name, perturbation in self._perturbations.items():
            perturbation.scene(self._camera, self._of_world(name))
            options = perturbation.start(options, self._of_world(name))
        return self._perceived(*self.env.reset(seed=seed, options=options))

    def step(self, command: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = self.env.step(command)
        self._decision += 1
        observation, info = self._perceived(observation, info)
        return observation, float(reward), terminated, truncated, info

    def _perceived(self, observation: dict, info: dict) -> tuple[dict, dict]:
        frame, instruction = observation["frame"], info["instruction"]
        for name, perturbation in self._perturbations.items():
            frame = np.concatenate(
                [
                    perturbation.picture(frame[..., first : first + 3], self._of_picture(name, first))
                    for first in range(0, frame.shape[-1], 3)
                ],
                axis=-1,
            )
            instruction = perturbation.instruction(instruction, self._of_world(name))
        return observation | {"frame": frame}, info | {"instruction": instruction}

    def _of_world(self, name: str) -> np.random.Generator:
        return np.random.default_rng([zlib.crc32(name.encode()), self._task, self._init_state])

    def _of_picture(self, name: str, channel: int) -> np.random.Generator:
        return np.random.default_rng([zlib.crc32(name.encode()), self._seed, self._decision, channel])


def perturbed(make_env: MakeEnv, perturbations: Mapping[str, Perturbation]) -> MakeEnv:
    """`make_env` of environments under the perturbations; without any, `make_env` itself."""
    return functools.partial(_make, make_env, dict(perturbations)) if perturbations else make_env


def _make(make_env: MakeEnv, perturbations: Mapping[str, Perturbation], task: int) -> PerturbedEnv:
    return PerturbedEnv(make_env(task), perturbations)
