"""A world that demonstrates itself: a scripted expert acts, and what it saw and did becomes a `Demo`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from vla_rl.demos.demo import Demo
from vla_rl.sim.decision import DecisionEnv

COMMAND_LEVELS = np.array([0.0, 0.1, 0.4, 1.0])  # sizes of a command along x, y and z
HESITANT_COMMAND = 0.4  # largest one in a hesitant step

Expert = Callable[[], np.ndarray]  # the command for the state that the last reset or step left, float64 [A]


class ExpertEnv(DecisionEnv):
    """An environment that has an expert and goes on after success. A world's own class comes after this among the
    bases.

    Args:
        render: False leaves frames black, to only see whether the expert succeeds.
    """

    suite: str
    task: int

    def __init__(self, *args: Any, render: bool = True, **options: Any) -> None:
        self._render = render
        super().__init__(*args, **options)

    @abstractmethod
    def expert(self) -> Expert:
        """A new expert for the episode that has just begun."""

    def step(self, command: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        steps = self._steps
        assert steps is not None, "no episode has begun: call reset()"
        outcome = super().step(command)
        self._steps = steps + outcome[-1]["executed"]
        return outcome

    def _observation(self) -> dict[str, np.ndarray]:
        if self._render:
            return super()._observation()
        return {"frame": np.zeros(cast(Any, self.observation_space)["frame"].shape, np.uint8), "proprio": self._proprio}


def to_levels(command_3: np.ndarray) -> np.ndarray:
    """Each of x, y and z to the nearest of `COMMAND_LEVELS`, as of keys: a continuous law would spread commands over
    all 256 action bins, and a learner would sample among dozens of bins that decide nothing."""
    nearest_3 = np.abs(np.abs(command_3[:, None]) - COMMAND_LEVELS).argmin(1)
    return np.sign(command_3) * COMMAND_LEVELS[nearest_3]


def demonstrate(
    env: ExpertEnv, init_state: int, *, noise: float, hesitation: float, linger_steps: int, seed: int
) -> Demo:
    """One demonstration; one that reaches the environment's horizon without success is a failure.

    DART (Laskey et al., 2017, arXiv 1703.09327): the command executed is the clean one plus N(0, noise^2) on xyz, the
    one recorded is the clean one, so that demonstrations show how to correct what the learner will get wrong.

    Args:
        noise: standard deviation, in units of the command (1.0 moves ~1 cm a step).
        hesitation: probability that a step moves at most `HESITANT_COMMAND` along each axis, as people who teleoperate
            are slower than they need to be. It is recorded: slack that reinforcement learning can remove.
        linger_steps: control steps recorded after success, which show the hand at rest.
        seed: of noise and hesitation, together with `init_state`.
    """
    observation, _ = env.reset(options={"init_state": init_state})
    rng = np.random.default_rng([seed, init_state])
    expert = env.expert()
    frames: list[np.ndarray] = []
    proprios: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    linger: int | None = None
    while linger != 0 and len(actions) < env.horizon:
        action = expert()
        if rng.random() < hesitation:
            action[:3] = np.clip(action[:3], -HESITANT_COMMAND, HESITANT_COMMAND)
        frames.append(observation["frame"])
        proprios.append(observation["proprio"])
        actions.append(action)
        executed = action.copy()
        executed[:3] += noise * rng.standard_normal(3)
        observation, _, success, _, _ = env.step(np.clip(executed, -1.0, 1.0)[None])
        if linger is not None:
            linger -= 1
        elif success:
            linger = linger_steps
    return Demo(
        frame_THWC=torch.from_numpy(np.stack(frames)),
        proprio_TP=torch.from_numpy(np.stack(proprios)),
        action_TA=torch.from_numpy(np.stack(actions)).float(),
        instruction=env.instruction,
        suite=env.suite,
        task=env.task,
        init_state=init_state,
        success=linger is not None,
        seed=seed,
    )
