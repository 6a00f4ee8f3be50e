"""`Batcher`: one forward of the policy for all requests that wait, in a thread of its own.

While the policy computes, further requests gather; they are the next batch. No request waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from vla_rl.rollout.decide import decide
from vla_rl.serving.request import Request
from vla_rl.types import Actor, Observation


@dataclass(slots=True, eq=False)
class _Waiting:
    request: Request
    seed: int
    answer: asyncio.Future[np.ndarray]


class Batcher:
    """Decides for many clients.

    Args:
        temperature: of the sampling, each request with its own seed; 0 = greedy.
        max_batch: rows of one forward at most.
    """

    def __init__(self, policy: Actor, *, temperature: float, max_batch: int) -> None:
        self.policy, self.temperature, self.max_batch = policy, temperature, max_batch
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def decide(self, request: Request, seed: int) -> np.ndarray:
        """The commands of the request's chunk, float32 [L, A].

        Raises:
            UserError: the policy refuses this observation; other requests are answered all the same.
            RunError: it answers NaN.
        """
        waiting = _Waiting(request, seed, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.answer

    async def run(self) -> None:
        """Answer until cancelled."""
        try:
            while True:
                await self._arrived.wait()
                batch = self._next_batch()
                if not self._waiting:
                    self._arrived.clear()
                await self._answer(batch)
        finally:
            self._thread.shutdown(wait=False)

    def _next_batch(self) -> list[_Waiting]:
        """The longest-waiting request and those behind it whose pictures and state have the same shapes."""
        shapes = _shapes(self._waiting[0].request)
        alike = [one for one in self._waiting if _shapes(one.request) == shapes][: self.max_batch]
        self._waiting = [one for one in self._waiting if one not in alike]
        return alike

    async def _answer(self, batch: list[_Waiting]) -> None:
        batch = [one for one in batch if not one.answer.done()]  # whose client has not gone meanwhile
        if not batch:
            return
        loop = asyncio.get_running_loop()
        try:
            commands = await loop.run_in_executor(self._thread, self._act, batch)
        except Exception as e:
            if len(batch) == 1:
                batch[0].answer.set_exception(e)
                return
            for one in batch:  # whose request it was shows when each is asked alone
                await self._answer([one])
            return
        for one, command in zip(batch, commands, strict=True):
            if not one.answer.done():
                one.answer.set_result(command)

    def _act(self, batch: Sequence[_Waiting]) -> list[np.ndarray]:
        observation = Observation(
            torch.stack([one.request.frame_HWC for one in batch]),
            torch.stack([one.request.proprio_P for one in batch]),
            [one.request.instruction for one in batch],
        )
        with torch.no_grad():
            chunk = decide(self.policy, observation, [one.seed for one in batch], self.temperature)
        return list(chunk.command_NLA.numpy())


def _shapes(request: Request) -> tuple[torch.Size, torch.Size]:
    return request.frame_HWC.shape, request.proprio_P.shape
