"""What a run can go on from: `checkpoints/last.ckpt`, and the policy itself in `policy/`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.budget import check_count
from vla_rl.policy import save_trained


class Checkpoint(ModelCheckpoint):
    """Written every `every_iterations` iterations, and before the first, so that a run can be stopped at any time.

    `checkpoints/last.ckpt` holds trainable tensors, optimizer and callbacks; `policy/` is what `policy.checkpoint=`
    or, for adapters, `policy.adapter=` reads. Both are replaced whole.
    """

    def __init__(self, every_iterations: int = 1) -> None:
        check_count("every_iterations", every_iterations, "iteration", "callbacks.checkpoint.every_iterations=1")
        super().__init__(
            filename="last", enable_version_counter=False, every_n_epochs=every_iterations, save_on_train_epoch_end=True
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._save_checkpoint(trainer, str(Path(self.dirpath) / "last.ckpt"))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            _replace_folder(
                Path(trainer.default_root_dir) / "policy",
                lambda folder: save_trained(trainer.lightning_module.policy, folder),
            )


def _replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write aside, then swap: a run killed in between leaves a whole folder, the old one or the new one."""
    new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    write(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
