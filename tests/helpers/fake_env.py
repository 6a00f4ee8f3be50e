"""An environment for testing the processes around it: deterministic, instant, and breaking on demand.

Imports little, because workers import it.
"""

from __future__ import annotations

import os
import time

import numpy as np

from vla_rl.errors import UserError

HORIZON, PX = 40, 16
# Initial states that break at their second command.
RAISES, DIES, HANGS, NOT_DETERMINISTIC, REFUSES = 101, 102, 103, 104, 105


class FakeEnv:
    """proprio = [task, init_state, steps, a digest of the commands, 0, 0, 0, 0]; the frame repeats its bytes."""

    def __init__(self, task: int) -> None:
        self.task = task

    def reset(self, *, seed: int | None = None, options: dict) -> tuple[dict, dict]:
        self.init_state, self.steps, self.decisions, self.total = options["init_state"], 0, 0, np.float32(0)
        return self._observation(), self._info(0)

    def step(self, command: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.decisions += 1
        if self.decisions == 2:
            self._misbehave()
        executed = min(len(command), HORIZON - self.steps)
        self.steps += executed
        self.total = np.sin(self.total + command[:executed].sum(dtype=np.float32))  # the order of commands matters
        return self._observation(), 0.0, False, self.steps >= HORIZON, self._info(executed)

    def _misbehave(self) -> None:
        if self.init_state == RAISES:
            raise ZeroDivisionError("a bug in the environment")
        if self.init_state == REFUSES:
            raise UserError("no such initial state: take another")
        if self.init_state == DIES:
            os._exit(7)
        if self.init_state == HANGS:
            time.sleep(1000)

    def _observation(self) -> dict[str, np.ndarray]:
        chance = os.getpid() if self.init_state == NOT_DETERMINISTIC else 0
        proprio = np.array([self.task, self.init_state, self.steps, self.total, chance, 0, 0, 0], dtype=np.float32)
        pixels = np.resize(np.frombuffer(proprio.tobytes(), dtype=np.uint8), (PX, PX, 3))
        return {"frame": pixels, "proprio": proprio}

    def _info(self, executed: int) -> dict:
        return {"instruction": f"task {self.task}", "executed": executed, "success": False}
