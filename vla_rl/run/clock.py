"""`RunClock`: how long a run has taken, over all the processes that worked on it."""

from __future__ import annotations

import time
from typing import Any

import lightning as L


class RunClock(L.Callback):
    """Runs from when it is made. Its state is in the checkpoint, so that a resumed run goes on from there; what was
    lost after the checkpoint does not count."""

    def __init__(self) -> None:
        self._began, self._earlier_s = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        return self._earlier_s + time.perf_counter() - self._began

    def state_dict(self) -> dict[str, Any]:
        return {"time/run_s": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier_s = state_dict["time/run_s"]
