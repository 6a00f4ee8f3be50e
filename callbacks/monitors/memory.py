"""Memory of the machine and the GPU, and of the update's activations (what autograd keeps for the backward pass)."""

from __future__ import annotations

from typing import Any

import lightning as L
import psutil
import torch

from vla_rl.checks import check_count
from vla_rl.policy.activations import SavedBytes
from vla_rl.types import ChunkBatch

MB = 1e6  # bytes


class Resources(L.Callback):
    """Logs `memory/host_mb` (this rank's process and its simulators; pages they share count once) and, on a GPU,
    `memory/gpu_peak_mb` (the most that torch had allocated since the iteration before). Both are of the first rank.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch:
            return
        used = {"host_mb": host_bytes() / MB}
        device = trainer.strategy.root_device
        if device.type == "cuda":
            used["gpu_peak_mb"] = torch.cuda.max_memory_allocated(device) / MB
            torch.cuda.reset_peak_memory_stats(device)
        for name, value in used.items():
            pl_module.log(f"memory/{name}", value, on_step=False, on_epoch=True, batch_size=1)


def host_bytes() -> int:
    """Memory of this process and of all it has started; a page that n processes share counts 1/n in each."""
    process = psutil.Process()
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
            continue
    return total


class ActivationMemory(L.Callback):
    """Logs `memory/activations_mb`: the peak over the iteration's first optimizer step, of one rank (MB = 1e6 bytes).

    It grows with the rows of a micro-batch: compare runs of the same `grpo.micro_rows`, or of one large enough that a
    trajectory fits.

    Args:
        every_iterations: iterations between two measurements, beginning with the first.
    """

    def __init__(self, every_iterations: int = 10) -> None:
        check_count("callbacks.memory.every_iterations", every_iterations, 10)
        self.every_iterations = every_iterations
        self._hooks: torch.autograd.graph.saved_tensors_hooks | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ChunkBatch, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.current_epoch % self.every_iterations == 0:
            self._meter = SavedBytes(list(pl_module.parameters()))
            self._hooks = self._meter.hooks()
            self._hooks.__enter__()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: ChunkBatch, batch_idx: int
    ) -> None:
        if self._close() and self._meter.peak:
            value = self._meter.peak / MB
            pl_module.log("memory/activations_mb", value, on_step=False, on_epoch=True, batch_size=1)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> bool:
        """Stop measuring; whether that had begun."""
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.__exit__(None, None, None)
        return hooks is not None
