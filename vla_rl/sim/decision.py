"""`DecisionEnv`: a simulator as a gymnasium environment whose step is a decision: a chunk of control steps, one frame.

What every world shares: how a command is executed row by row, when an episode ends, and what an observation is.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from vla_rl.errors import UserError

if TYPE_CHECKING:
    from vla_rl.sim.render import Camera


class DecisionEnv(gymnasium.Env):
    """An environment executes the rows of a command, float [h, actions] with 1 <= h <= chunk_steps, until success or
    the horizon, and draws what it saw last.

    A world sets `instruction` and `horizon`, calls `_set_spaces`, keeps its `cameras`, and gives `_control` and
    `_sample`. Its `reset` ends with `return self._begun()`.
    """

    metadata = {"render_modes": []}
    instruction: str
    horizon: int  # control steps before truncation
    chunk_steps: int  # most control steps in a command
    cameras: list[Camera]  # their pictures lie one after the other on the frame's channels
    _proprio: np.ndarray  # float32, of the last `_sample`
    _steps: int | None = None  # control steps of this episode; None = needs a reset

    def _set_spaces(self, *, chunk_steps: int, actions: int, camera_px: int, images: int, proprio: int) -> None:
        self.chunk_steps, self._actions = chunk_steps, actions
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (chunk_steps, actions), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "frame": gymnasium.spaces.Box(0, 255, (camera_px, camera_px, 3 * images), np.uint8),
                "proprio": gymnasium.spaces.Box(-np.inf, np.inf, (proprio,), np.float32),
            }
        )

    def _wanted_start(self, options: dict[str, Any] | None, states: int = 2**31) -> tuple[int, np.ndarray | None]:
        """What the options of `reset` ask for: `init_state`, or one of `states` that is drawn, and `arm_offset_rad`."""
        options = options or {}
        init_state = options.get("init_state")
        if init_state is None:
            init_state = int(self.np_random.integers(states))
        return init_state, options.get("arm_offset_rad")

    @abstractmethod
    def _control(self, action_A: np.ndarray, *, sample: bool) -> bool:
        """One control step; whether the task is solved now.

        Args:
            sample: it is the last one of the command: `_sample` at the moment at which this world senses.
        """

    @abstractmethod
    def _sample(self) -> None:
        """Remember what is sensed now: the scene to draw (`Camera.update`) and the proprioception."""

    def _begun(self) -> tuple[dict, dict]:
        """What a reset returns."""
        self._steps = 0
        return self._observation(), self._info(executed=0, success=False)

    def step(self, command: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        command = np.asarray(command, dtype=np.float64)
        assert self._steps is not None, "the episode is over (or has not begun): call reset()"
        assert 1 <= len(command) <= self.chunk_steps and command.ndim == 2, command.shape
        if command.shape[1] != self._actions:
            raise UserError(
                f"the policy's commands have {command.shape[1]} numbers, the simulator takes {self._actions}: "
                "policy.checkpoint=FOLDER of a policy that was trained in this simulator"
            )
        assert np.isfinite(command).all(), "the command holds NaN or infinity"
        success, executed = False, 0
        planned = min(len(command), self.horizon - self._steps)
        while executed < planned and not success:
            success = self._control(command[executed], sample=executed == planned - 1)
            executed += 1
        if executed < planned:
            self._sample()
        self._steps += executed
        truncated = not success and self._steps >= self.horizon
        if success or truncated:
            self._steps = None
        return self._observation(), float(success), success, truncated, self._info(executed, success)

    def close(self) -> None:
        """Free the renderer; may be called twice."""
        for camera in self.cameras:
            camera.close()

    def _observation(self) -> dict[str, np.ndarray]:
        frame = np.concatenate([camera.read() for camera in self.cameras], axis=-1)
        return {"frame": frame, "proprio": self._proprio}

    def _info(self, executed: int, success: bool) -> dict[str, Any]:
        return {"instruction": self.instruction, "executed": executed, "success": success}
