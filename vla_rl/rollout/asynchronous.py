"""Rollouts one iteration ahead: while the policy is updated, a copy of it collects the next iteration's episodes.

The copy has the weights from before the update. The loss needs nothing new: each chunk's probability under the policy
that acted is in its trajectory, and the clipped ratio corrects for the difference, as in the later minibatches of an
iteration.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vla_rl.distributed.parameters import trainable_parameters
from vla_rl.rollout.collect import TimeSplit, collect
from vla_rl.types import ActionChunk, Episode, Observation, Policy, SimulatorPool, Trajectory

STOP_S = 10  # an answer or a simulator's chunk takes less, unless it hangs


class Cancelled(Exception):
    """The collection was cancelled: its episodes are no longer needed."""


class AsyncRollouts:
    """Runs one collection at a time in a thread. The pool must not be used otherwise until `wait` returns.

    Args:
        temperature: of the sampling.
    """

    def __init__(self, pool: SimulatorPool, temperature: float) -> None:
        self._pool, self._temperature = pool, temperature
        self._copy: Policy | None = None  # who acts
        self._thread: threading.Thread | None = None
        self._ended: queue.SimpleQueue[Trajectory | None] = queue.SimpleQueue()  # None: there are no more
        self._result: list[Trajectory] | BaseException = []
        self._cancelled = False
        self.episodes: Sequence[Episode] = ()  # those under way, or ended and not taken yet

    def start(self, policy: Policy, episodes: Sequence[Episode], weights: Mapping[str, Tensor] | None = None) -> None:
        """Begin with `episodes`, by a copy of the policy as it is now, or with other trained `weights`."""
        if self._copy is None:
            self._copy = _copy(policy)
        with torch.no_grad():
            source = dict(policy.named_parameters()) if weights is None else weights
            for name, p in trainable_parameters(self._actor).items():
                p.copy_(source[name])
        self.episodes = episodes
        self._thread = threading.Thread(target=self._run, name="rollouts ahead", daemon=True)
        self._thread.start()

    def take(self, on_done: Callable[[Trajectory], None] | None) -> tuple[list[Trajectory], TimeSplit]:
        """Wait for the rest.

        Args:
            on_done: called with each trajectory that has ended or ends, in the thread that calls `take`.

        Returns:
            The trajectories in the order of the episodes; and the seconds waited here, the others were free.
        """
        began = time.perf_counter()
        for trajectory in iter(self._ended.get, None):
            if on_done:
                on_done(trajectory)
        self.wait()
        waited = time.perf_counter() - began
        self.episodes = ()
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result, TimeSplit(wait_s=waited, total_s=waited)

    def wait(self) -> None:
        """Until the pool is free. What was collected waits to be taken."""
        if self._thread is not None:
            self._thread.join()

    def cancel(self) -> None:
        """End without a result. The pool is of no use afterwards: it has episodes under way."""
        self._cancelled = True
        if self._thread is not None:
            self._thread.join(STOP_S)

    def weights(self) -> dict[str, Tensor]:
        """What is trained of the policy that collects `episodes`, on the host."""
        return {name: p.detach().cpu().clone() for name, p in trainable_parameters(self._actor).items()}

    @property
    def _actor(self) -> Policy:
        assert self._copy is not None, "nothing was started"
        return self._copy

    def act(self, observation: Observation, seed_N: Sequence[int], temperature: float) -> ActionChunk:
        """As `vla_rl.types.Policy`, by the copy."""
        if self._cancelled:
            raise Cancelled
        return self._actor.act(observation, seed_N, temperature)

    def _run(self) -> None:
        try:
            self._result, _ = collect(
                self._pool, self, self.episodes, temperature=self._temperature, on_done=self._ended.put
            )
        except BaseException as e:  # raised again where the result is taken
            self._result = e
        self._ended.put(None)


def _copy(policy: Policy) -> Policy:
    """The policy, with trained tensors of its own; the frozen ones, which are most of it, are shared."""
    frozen = {id(p): p for p in policy.parameters() if not p.requires_grad}
    return copy.deepcopy(policy, frozen)
