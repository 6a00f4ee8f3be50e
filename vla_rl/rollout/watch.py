"""`Watch`: notices when an episode is lost, so that the rest of it is not simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vla_rl.types import Decision


@dataclass(slots=True)
class Watch:
    """Of one episode: it is lost when its value has stayed below `below` for `after` decisions in a row.

    Args:
        value: the reward that is expected at a decision.
        runs_on: a lost episode is not ended, so that one sees whether it would have succeeded.
    """

    value: Callable[[Decision], float]
    below: float
    after: int
    runs_on: bool
    low: int = 0  # decisions in a row, until now
    lost_at: int | None = None  # index of the decision at which it was lost

    def __call__(self, decision: Decision) -> bool:
        """Whether the episode ends before this decision; never before the first, an episode has at least one."""
        self.low = self.low + 1 if self.value(decision) < self.below else 0
        if self.lost_at is None and self.low >= self.after and decision.index:
            self.lost_at = decision.index
        return self.lost_at is not None and not self.runs_on
