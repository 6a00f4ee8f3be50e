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
from vla_rl.rollout.decide import decide
from vla_rl.types import (
    ActionChunk,
    Actor,
    Decision,
    Episode,
    Observation,
    SimulatorPool,
    SlotEvent,
    Trajectory,
    executed_mask,
)


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
    turned: bool
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

    def is_lost(self, answer: ActionChunk) -> bool:
        """Whether the episode ends here, before the answer is executed."""
        if self.episode.lost is None:
            return False
        closing = 0.0
        if self.executed:
            closing = float((self.answers[-1].command_NLA[: self.executed[-1], -1] > 0).float().mean())
        return self.episode.lost(Decision(len(self.executed), self.proprios[-1], answer, closing, self.episode.window))

    def stop(self) -> Trajectory:
        """The lost episode: a failure that ends with what was seen last."""
        return self._trajectory(self.frames.pop(), self.proprios.pop(), success=False, stopped=True)

    def finish(self, event: SlotEvent) -> Trajectory:
        return self._trajectory(self.frame(event), event.proprio_P.clone(), success=event.success, stopped=False)

    def _trajectory(
        self, last_frame_HWC: Tensor, last_proprio_P: Tensor, *, success: bool, stopped: bool
    ) -> Trajectory:
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
            success=success,
            reward=float(success),
            last_frame_HWC=last_frame_HWC,
            last_proprio_P=last_proprio_P,
            stopped=stopped,
            turned=self.turned,
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

    Raises:
        RunError: the policy answers NaN.
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
            busy[slot] = (index, _Recording(episode, getattr(pool, "turned", False)))
            pool.start(slot, episode)
        tick = time.perf_counter()
        events = pool.wait()
        split.wait_s += time.perf_counter() - tick
        waiting: list[tuple[int, _Recording]] = []
        ended: list[tuple[int, Trajectory]] = []
        for event in events:
            index, recording = busy[event.slot]
            if event.executed:
                recording.executed.append(event.executed)
            if event.done:
                ended.append((event.slot, recording.finish(event)))
            else:
                recording.observe(event)
                waiting.append((event.slot, recording))
        if waiting:
            tick = time.perf_counter()
            ended += _answer(pool, policy, waiting, temperature)
            split.infer_s += time.perf_counter() - tick
        for slot, trajectory in ended:
            index, _ = busy.pop(slot)
            free.add(slot)
            done[index] = trajectory
            if on_done:
                on_done(trajectory)
    split.total_s = time.perf_counter() - began
    return [done[i] for i in range(len(episodes))], split


def _answer(
    pool: SimulatorPool, policy: Actor, waiting: list[tuple[int, _Recording]], temperature: float
) -> list[tuple[int, Trajectory]]:
    """One forward for all slots that wait; each gets its commands, but for those whose episode is lost: returns
    these."""
    recordings = [recording for _, recording in waiting]
    observation = Observation(
        frame_NHWC=torch.stack([r.frames[-1] for r in recordings]),
        proprio_NP=torch.stack([r.proprios[-1] for r in recordings]),
        instruction_N=[r.instruction for r in recordings],
    )
    chunk = decide(policy, observation, [r.seed() for r in recordings], temperature)
    lost = []
    for n, (slot, recording) in enumerate(waiting):
        if recording.is_lost(chunk.rows(slice(n, n + 1))):
            pool.abandon(slot)
            lost.append((slot, recording.stop()))
        else:
            recording.answers.append(chunk.row(n))
            pool.step(slot, chunk.command_NLA[n, : recording.episode.window])
    return lost
