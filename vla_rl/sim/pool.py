"""Simulators in processes of their own, behind slots, for any environment.

An environment is bitwise deterministic, so an episode is fully described by its start and its commands. That makes
faults invisible: a worker that dies or hangs is replaced, and its episode replayed in the new one.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vla_rl.checks import check_count, check_number
from vla_rl.errors import UserError, did_you_mean
from vla_rl.machine import cores
from vla_rl.sim.worker import Failure, Frames, MakeEnv, Outcome, Start, Worker
from vla_rl.types import Episode, SlotEvent

log = logging.getLogger(__name__)

FILES_PER_WORKER = 3  # open in the main process: a pipe, an end of the worker's stdin, its log
FILES_BESIDE = 24  # open in the main process for other things: metrics, videos, checkpoints
MAX_RESTARTS = 3  # of one episode: more means that the episode itself brings the simulator down


@dataclass(slots=True)
class _Slot:
    """A worker and the episode under way in it."""

    worker: Worker | None = None
    built: set[int] = field(default_factory=set)  # tasks whose environment the worker holds
    episode: Episode | None = None
    commands: list[np.ndarray] = field(default_factory=list)  # of this episode, as sent
    outcomes: list[Outcome] = field(default_factory=list)  # of this episode, as received: the reset's, then one each
    replayed: int = 0  # outcomes that this worker has led to; fewer than `outcomes` while it replays
    restarts: int = 0  # of this episode
    deadline_s: float | None = None  # time.monotonic() at which the worker counts as hung; None = nothing was asked

    @property
    def running(self) -> Worker:
        assert self.worker is not None, "no worker runs"
        return self.worker

    @property
    def under_way(self) -> Episode:
        assert self.episode is not None, "no episode is under way"
        return self.episode

    def kill(self) -> int | None:
        """End the worker, if there is one; its exit status."""
        worker, self.worker, self.deadline_s = self.worker, None, None
        self.built.clear()
        return worker.kill() if worker else None


class ProcessPool:
    """Fulfils `vla_rl.types.SimulatorPool`: one process per slot, started by the slot's first episode.

    Args:
        make_env: task -> gymnasium environment at decision level; pickled by reference, called inside the workers.
        tasks: what episodes may ask for.
        max_chunks: decisions in the longest possible episode.
        chunk_steps: control steps per decision.
        init_states: how many initial states a task has; None = as many as there are seeds.
        camera_px: height and width of the environment's frames.
        images: pictures on a frame's channels.
        workers: processes, and slots; 0 = one per core that this process may use.
        timeout_s: an answer that takes longer (building an environment included) means that the worker hangs.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        *,
        tasks: list[int],
        max_chunks: int,
        chunk_steps: int,
        init_states: int | None = None,
        camera_px: int,
        images: int = 1,
        workers: int,
        timeout_s: float,
    ) -> None:
        workers = workers or cores()
        self.tasks, self.max_chunks, self.slots = tasks, max_chunks, workers
        self.chunk_steps, self.init_states = chunk_steps, init_states
        self.restarts = 0  # workers replaced so far
        self._make_env, self._timeout_s = make_env, timeout_s
        _check_open_files(workers)
        self._slots = [_Slot() for _ in range(workers)]
        self.images = images
        self._frames = Frames(workers, camera_px, images)
        self._frame_SHWC = torch.frombuffer(self._frames.map(), dtype=torch.uint8).view(self._frames.shape)
        self._end = weakref.finalize(self, _end, self._slots, self._frames)  # at interpreter exit as well

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Of the workers that run, by slot."""
        return [slot.worker.pid for slot in self._slots if slot.worker]

    def close(self) -> None:
        """End all workers, at once: they have nothing to save. May be called twice."""
        self._end()

    def start(self, slot: int, episode: Episode) -> None:
        assert episode.task in self.tasks, f"task {episode.task} is not one of the pool's, {self.tasks}"
        state = self._slots[slot]
        assert state.episode is None, f"slot {slot} still has an episode under way"
        state.episode, state.commands, state.outcomes, state.restarts = episode, [], [], 0
        self._begin(slot)

    def step(self, slot: int, command_LA: Tensor) -> None:
        state = self._slots[slot]
        assert state.episode is not None and state.deadline_s is None, f"slot {slot} does not wait for a command"
        state.commands.append(command_LA.to("cpu", torch.float32).numpy().copy())  # kept: the caller may reuse it
        state.running.send(state.commands[-1])
        state.deadline_s = time.monotonic() + self._timeout_s

    def abandon(self, slot: int) -> None:
        state = self._slots[slot]
        assert state.episode is not None and state.deadline_s is None, f"slot {slot} does not wait for a command"
        state.episode = None

    def wait(self) -> list[SlotEvent]:
        """All slots that have become ready since the last call; blocks until there is one.

        Raises:
            UserError: an environment raised one.
            RuntimeError: an environment raised anything else (its traceback is in the message), or one episode
                brought down its worker more than `MAX_RESTARTS` times.
        """
        assert any(s.deadline_s is not None for s in self._slots), "wait() would block for ever: nothing was asked"
        events: list[SlotEvent] = []
        while not events:
            deadlines_s = {n: s.deadline_s for n, s in enumerate(self._slots) if s.deadline_s is not None}
            asked = {self._slots[n].running.connection: n for n in deadlines_s}
            timeout_s = max(0.0, min(deadlines_s.values()) - time.monotonic())
            ready = cast(list[connection.Connection], connection.wait(list(asked), timeout=timeout_s))
            for pipe in ready:
                try:
                    answer = pipe.recv()
                except (EOFError, OSError):
                    self._replace(asked[pipe], hung=False)
                else:
                    events += self._receive(asked[pipe], answer)
            for pipe in asked.keys() - set(ready):
                if deadlines_s[asked[pipe]] < time.monotonic():
                    self._replace(asked[pipe], hung=True)
        return events

    def preferred_slot(self, free: Sequence[int], episode: Episode) -> int:
        """The free slot that has the task's environment built; else the one that has built least."""
        assert free, "no slot is free"
        return min(free, key=lambda n: (episode.task not in self._slots[n].built, len(self._slots[n].built), n))

    def _begin(self, slot: int) -> None:
        """Send the episode's start and its commands so far, to a new worker if the slot has none."""
        assert self._end.alive, "the pool is closed"
        state = self._slots[slot]
        if state.worker is None:
            state.worker = Worker(self._frames, slot)
        episode = state.under_way
        state.running.send(Start(self._make_env, episode.task, episode.init_state, episode.seed, state.commands))
        state.built.add(episode.task)
        state.replayed = 0
        state.deadline_s = time.monotonic() + self._timeout_s

    def _receive(self, slot: int, answer: Outcome | Failure) -> list[SlotEvent]:
        """The event that the answer means: none while the worker replays."""
        state = self._slots[slot]
        if isinstance(answer, Failure):
            where = self._describe(slot)
            state.kill()
            state.episode = None
            if answer.user_error is not None:
                raise UserError(answer.user_error)
            raise RuntimeError(f"the simulator raised in {where}; in its worker:\n{answer.traceback}")
        state.replayed += 1
        if state.replayed <= len(state.outcomes):
            if answer != state.outcomes[state.replayed - 1]:
                where = self._describe(slot)
                raise RuntimeError(f"the simulator is not deterministic: a replay went another way in {where}")
            state.deadline_s = time.monotonic() + self._timeout_s
            return []
        state.outcomes.append(answer)
        state.deadline_s = None
        if answer.done:
            state.episode = None
        return [self._event(slot, answer)]

    def _event(self, slot: int, outcome: Outcome) -> SlotEvent:
        return SlotEvent(
            slot=slot,
            executed=outcome.executed,
            success=outcome.success,
            done=outcome.done,
            frame_HWC=self._frame_SHWC[slot],
            proprio_P=torch.frombuffer(bytearray(outcome.proprio), dtype=torch.float32),
            instruction=outcome.instruction,
        )

    def _replace(self, slot: int, *, hung: bool) -> None:
        """A new worker for the slot, and its episode again from the start."""
        state = self._slots[slot]
        where, last_words = self._describe(slot), state.running.last_words(hung=hung)
        status = state.kill()
        why = f"gave no answer for {self._timeout_s:g} s" if hung else f"ended (exit status {status})"
        self.restarts += 1
        state.restarts += 1
        if state.restarts > MAX_RESTARTS:
            state.episode = None
            raise RuntimeError(
                f"simulator worker {slot} {why}, {state.restarts} times in {where}; a slow machine needs a longer"
                f" sim.timeout_s={2 * self._timeout_s:g}; the worker's last output:\n{last_words}"
            )
        log.warning("simulator worker %d %s in %s; replaying in a new one", slot, why, where)
        self._begin(slot)

    def _describe(self, slot: int) -> str:
        state = self._slots[slot]
        episode = state.under_way
        return f"task {episode.task}, initial state {episode.init_state}, decision {len(state.commands)}"


def check_sizes(
    *,
    camera_px: int,
    chunk_steps: int,
    horizon: int,
    usual_horizon: int,
    longest: int | None = None,
    workers: int,
    timeout_s: float,
) -> None:
    """Raise UserError unless the options that every world's pool has can be used.

    Args:
        usual_horizon: for the message. longest: largest horizon that the world can run; None = any.
    """
    check_count("sim.camera_px", camera_px, 128, least=16)
    check_count("sim.chunk_steps", chunk_steps, 8)
    check_count("sim.horizon", horizon, usual_horizon, least=chunk_steps, most=longest)
    check_count("sim.workers", workers, 2, least=0)
    check_number("sim.timeout_s", timeout_s, 120, least=0.1)


def checked_tasks(tasks: Any, index: Callable[[Any], int], example: str) -> list[int]:
    """The indices of the tasks in `sim.tasks`.

    Args:
        index: of one task as it is given; raises UserError if there is none.
        example: a list that is allowed.

    Raises:
        UserError: it is no list, or empty, or names a task that there is not, or one twice.
    """
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise UserError(f"sim.tasks must be a list of tasks, got {tasks!r}: sim.tasks={example}")
    indices = [index(task) for task in tasks]
    if not indices or len(set(indices)) < len(indices):
        raise UserError(f"sim.tasks must name at least one task and none twice, got {list(tasks)}: sim.tasks={example}")
    return indices


def named_task(task: int | str, indices: Mapping[str, int], *, version: str, none: str, allowed: str) -> int:
    """The index of a task that is given by its index, or by its name with or without the version behind it.

    Args:
        indices: of all tasks, by name.
        version: as names may end, such as -v3.
        none, allowed: for the message.

    Raises:
        UserError: no such task.
    """
    name = str(task).removesuffix(version)
    if isinstance(task, str) and name in indices:
        return indices[name]
    if isinstance(task, int | np.integer) and not isinstance(task, bool) and 0 <= task < len(indices):
        return int(task)
    hint = did_you_mean(name, indices) if isinstance(task, str) else "."
    raise UserError(f"{none} {task!r}{hint} Allowed: {allowed}")


def _check_open_files(workers: int) -> None:
    """Raise this process's limit of open files as far as its workers need it and the system allows.

    Raises:
        UserError: the system does not allow it.
    """
    needed = len(os.listdir("/proc/self/fd")) + FILES_PER_WORKER * workers + FILES_BESIDE
    limit, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or needed <= limit:
        return
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        fewer = max(1, workers - math.ceil((needed - allowed) / FILES_PER_WORKER))
        raise UserError(
            f"{workers} simulators need {needed} open files, and the limit is {allowed}: ulimit -n {max(1024, needed)},"
            f" or sim.workers={fewer}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, allowed))


def _end(slots: list[_Slot], frames: Frames) -> None:
    for slot in slots:
        slot.kill()
    frames.close()
