"""What an iteration's seconds are spent on: simulating, inferring, preprocessing, updating, and the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.trainer_state import data_of, epoch_of

PARTS = ("simulate", "infer", "preprocess", "update", "idle")


class ForwardTimer:
    """Seconds inside the forward passes of a module. On a GPU it waits for the device, else it would time launches."""

    def __init__(self, module: nn.Module) -> None:
        self._seconds = self._began = 0.0
        self._hooks = [module.register_forward_pre_hook(self._begin), module.register_forward_hook(self._end)]

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._began = _now(inputs[0])

    def _end(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seconds += _now(output) - self._began


def _now(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


class Timing(RolloutCallback):
    """Logs `split/simulate_s`, `infer`, `preprocess`, `update`, `idle` of the first rank, and their sum
    `time/iteration_s`.

    An iteration lasts from the last optimizer step of the one before to its own last one: figures and checkpoints that
    the iteration before has left to do are in its `idle`, and so is waiting for other ranks. Evaluations are left out.
    Preprocessing is what the policy's module `pixels` does, for rollouts and updates; of a policy without one it counts
    to the other parts.
    """

    def __init__(self) -> None:
        self._began = self._step_began = 0.0  # time.perf_counter()
        self._update_s = self._rollout_pixels_s = self._update_pixels_s = 0.0
        self._pixels: ForwardTimer | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pixels = getattr(data_of(trainer).policy, "pixels", None)
        self._pixels = ForwardTimer(pixels) if isinstance(pixels, nn.Module) else None
        data_of(trainer).evaluating = self._pause
        self._began = time.perf_counter()

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """What an evaluation takes counts to no iteration."""
        paused = time.perf_counter()
        yield
        self._began += time.perf_counter() - paused
        self._take_pixels()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:  # what was rendered into pixels until now was acted on
            self._rollout_pixels_s, self._update_pixels_s, self._update_s = self._take_pixels(), 0.0, 0.0
        self._step_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self._update_s += now - self._step_began
        self._update_pixels_s += self._take_pixels()
        if not trainer.is_last_batch:
            return
        rollout = epoch_of(trainer).time
        seconds = {
            "simulate": rollout.wait_s,
            "infer": rollout.infer_s - self._rollout_pixels_s,
            "preprocess": self._rollout_pixels_s + self._update_pixels_s,
            "update": self._update_s - self._update_pixels_s,
        }
        total = now - self._began
        seconds["idle"] = total - sum(seconds.values())
        for part in PARTS:
            pl_module.log(f"split/{part}_s", seconds[part], on_step=False, on_epoch=True, batch_size=1)
        pl_module.log("time/iteration_s", total, on_step=False, on_epoch=True, batch_size=1)
        self._began = now

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._pixels is not None:
            self._pixels.remove()
            self._pixels = None

    def _take_pixels(self) -> float:
        return self._pixels.take() if self._pixels is not None else 0.0
