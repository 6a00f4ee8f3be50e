"""`StepwisePool`: simulators whose every control step is seen, for recording what a policy does.

A policy decides once per chunk and sees one picture per decision; a data set has one per control step. The rows of a
chunk are sent to the simulator one by one, and `collect` is told when the last one is done: it asks the policy at the
same moments as otherwise, so the episodes are those of an evaluation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vla_rl.demos.demo import Demo
from vla_rl.types import Episode, SimulatorPool, SlotEvent


@dataclass(slots=True)
class _Playing:
    """An episode under way."""

    episode: Episode
    left: deque[Tensor] = field(default_factory=deque)  # rows of the chunk that were not sent yet
    executed: int = 0  # of this chunk
    frames: list[Tensor] = field(default_factory=list)
    proprios: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)


class StepwisePool:
    """Fulfils `SimulatorPool` for `collect`.

    Args:
        pool: the simulators.
        suite: which they are of.
        on_demo: called with each episode as it ends, in order of completion.
    """

    def __init__(self, pool: SimulatorPool, suite: str, on_demo: Callable[[Episode, Demo], None]) -> None:
        self._pool, self._suite, self._on_demo = pool, suite, on_demo
        self._playing: dict[int, _Playing] = {}
        self.slots, self.tasks, self.images = pool.slots, pool.tasks, pool.images
        self.max_chunks, self.chunk_steps, self.init_states = pool.max_chunks, pool.chunk_steps, pool.init_states

    def start(self, slot: int, episode: Episode) -> None:
        self._playing[slot] = _Playing(episode)
        self._pool.start(slot, episode)

    def step(self, slot: int, command_LA: Tensor) -> None:
        playing = self._playing[slot]
        playing.left, playing.executed = deque(command_LA), 0
        self._send_row(slot)

    def abandon(self, slot: int) -> None:
        del self._playing[slot]
        self._pool.abandon(slot)

    def wait(self) -> list[SlotEvent]:
        events: list[SlotEvent] = []
        while not events:
            answers = [self._seen(event) for event in self._pool.wait()]
            events = [event for event in answers if event is not None]
        return events

    def preferred_slot(self, free: Sequence[int], episode: Episode) -> int:
        return self._pool.preferred_slot(free, episode)

    def close(self) -> None:
        self._pool.close()

    def _seen(self, event: SlotEvent) -> SlotEvent | None:
        """Keep what a control step showed; the event of the whole chunk when its last row is done."""
        playing = self._playing[event.slot]
        playing.executed += event.executed
        if event.done:
            self._on_demo(playing.episode, self._demo(playing, event))
            del self._playing[event.slot]
        else:
            playing.frames.append(event.frame_HWC.clone())  # the slot's memory is overwritten by its next step
            playing.proprios.append(event.proprio_P.clone())
            if playing.left:
                self._send_row(event.slot)
                return None
        return replace(event, executed=playing.executed)

    def _send_row(self, slot: int) -> None:
        playing = self._playing[slot]
        row_A = playing.left.popleft()
        playing.actions.append(row_A.float().cpu())
        self._pool.step(slot, row_A[None])

    def _demo(self, playing: _Playing, event: SlotEvent) -> Demo:
        episode = playing.episode
        return Demo(
            frame_THWC=torch.stack(playing.frames),
            proprio_TP=torch.stack(playing.proprios),
            action_TA=torch.stack(playing.actions).clamp(-1.0, 1.0),  # as the simulators do
            instruction=event.instruction,
            suite=self._suite,
            task=episode.task,
            init_state=episode.init_state,
            success=event.success,
            seed=episode.seed,
        )
