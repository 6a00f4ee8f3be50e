"""Memory of the machine and of the GPU, once per iteration."""

from __future__ import annotations

from typing import Any

import lightning as L
import psutil
import torch

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
