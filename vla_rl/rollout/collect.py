"""Episodes through the simulators: fill the slots, batch the policy over the slots that wait, assemble trajectories.

A slot whose episode ended is refilled at once, so nothing waits for the slowest episode of a group and nothing is
computed for a finished one. Shapes: see `vla_rl.types`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vla_rl.distributed.seeding import stable_seed
from vla_rl.types import ActionChunk, Actor, Episode, Observation, SimulatorPool, SlotEvent, Trajectory, executed_mask


@dataclass(slots=True)
class TimeSplit:
    """Seconds of a collection, as the main process sees them."""

    wait_s: float = 0.0  # nothing to infer: every busy slot was simulating
    infer_s: float = 0.0  # the policy computed (simulators go on meanwhile)
    total_s: float = 0.0

    def __add__(self, other: TimeSplit) -> TimeSplit:
        return TimeSplit(self.wait_s + other.wait_s, self.infer_s + other.infer_s, self.total_s + other.total_s)


@dataclass(slots=True)
class _Recording:
    """An episode under way."""

    episode: Episode
    instruction: str = ""
    frames: list[Tensor] = field(default_factory=list)
    proprios: list[Tensor] = field(default_factory=list)
    answers: list[ActionChunk] = field(default_factory=list)  # one row per decision
    executed: list[int] = field(default_factory=list)

    def observe(self, event: SlotEvent) -> None:
        self.instruction = event.instruction
        self.frames.append(self.frame(event))
        self.proprios.append(event.proprio_P.clone())

    def frame(self, event: SlotEvent) -> Tensor:
        frame_HWC = event.frame_HWC.clone()  # the slot's memory is overwritten by its next step
        # augmented before anybody sees it: what the policy acted on is what it is trained on, ratio 1 included
        return self.episode.augment(frame_HWC) if self.episode.augment else frame_HWC

    def seed(self) -> int:
        """Of the next decision's sampling: depends on the episode and the decision alone."""
        return stable_seed(self.episode.seed, len(self.executed))

    def finish(self, event: SlotEvent) -> Trajectory:
        actions = ActionChunk.stack(self.answers)
        executed_N = torch.tensor(self.executed)
        closes_NL = actions.command_NLA[..., -1] > 0
        return Trajectory(
            episode=self.episode,
            instruction=self.instruction,
            frame_NHWC=torch.stack(self.frames),
            proprio_NP=torch.stack(self.proprios),
            actions=actions,
            gripper_closed_NL=closes_NL & executed_mask(executed_N, closes_NL.shape[1]),
            executed_N=executed_N,
            success=event.success,
            reward=float(event.success),
            last_frame_HWC=self.frame(event),
            last_proprio_P=event.proprio_P.clone(),
        )


def collect(
    pool: SimulatorPool,
    policy: Actor,
    episodes: Sequence[Episode],
    *,
    temperature: float,
    on_done: Callable[[Trajectory], None] | None = None,
) -> tuple[list[Trajectory], TimeSplit]:
    """Run `episodes` to their ends.

    Args:
        temperature: of the sampling; 0 = greedy.
        on_done: called with each trajectory as it ends (for progress bars), in order of completion.

    Returns:
        The trajectories in the order of `episodes`, and where the time went.
    """
    began = time.perf_counter()
    split = TimeSplit()
    pending = deque(enumerate(episodes))
    free = set(range(pool.slots))
    busy: dict[int, tuple[int, _Recording]] = {}
    done: dict[int, Trajectory] = {}
    while pending or busy:
        while pending and free:
            index, episode = pending.popleft()
            slot = pool.preferred_slot(sorted(free), episode)
            free.remove(slot)
            busy[slot] = (index, _Recording(episode))
            pool.start(slot, episode)
        tick = time.perf_counter()
        events = pool.wait()
        split.wait_s += time.perf_counter() - tick
        waiting = []
        for event in events:
            index, recording = busy[event.slot]
            if event.executed:
                recording.executed.append(event.executed)
            if event.done:
                del busy[event.slot]
                free.add(event.slot)
                done[index] = recording.finish(event)
                if on_done:
                    on_done(done[index])
            else:
                recording.observe(event)
                waiting.append((event.slot, recording))
        if waiting:
            tick = time.perf_counter()
            _answer(pool, policy, waiting, temperature)
            split.infer_s += time.perf_counter() - tick
    split.total_s = time.perf_counter() - began
    return [done[i] for i in range(len(episodes))], split


def _answer(pool: SimulatorPool, policy: Actor, waiting: list[tuple[int, _Recording]], temperature: float) -> None:
    """One forward for all slots that wait; each gets its commands."""
    recordings = [recording for _, recording in waiting]
    observation = Observation(
        frame_NHWC=torch.stack([r.frames[-1] for r in recordings]),
        proprio_NP=torch.stack([r.proprios[-1] for r in recordings]),
        instruction_N=[r.instruction for r in recordings],
    )
    chunk = policy.act(observation, [r.seed() for r in recordings], temperature)
    for n, (slot, recording) in enumerate(waiting):
        recording.answers.append(chunk.row(n))
        pool.step(slot, chunk.command_NLA[n, : recording.episode.window])
