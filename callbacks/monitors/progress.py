"""One bar for the whole run: iteration, success, kept and real chunks, and where the seconds go."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from callbacks.monitors.timing import PARTS
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.trainer_state import data_of
from vla_rl.types import Trajectory


class RolloutProgress(ProgressBar, RolloutCallback):
    """Moves once per iteration, and shows the episodes of the iteration under way as they end.

    Where the output is no terminal (a log file), it prints one line per iteration instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._heldout_bar: tqdm | None = None
        self._enabled = True
        self._ended = self._succeeded = 0

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled or not trainer.is_global_zero:
            return
        data_of(trainer).on_done = self._on_episode
        if sys.stderr.isatty():
            self._bar = tqdm(total=trainer.max_epochs, initial=trainer.current_epoch, unit="iteration", leave=True)
            self._bar.set_description("rollouts")

    def _on_episode(self, trajectory: Trajectory) -> None:
        self._ended += 1
        self._succeeded += trajectory.success
        if self._bar is not None:
            self._bar.set_description(f"rollouts {self._succeeded}/{self._ended}")

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._enabled or not trainer.is_global_zero or not sys.stderr.isatty():
            return
        bar = tqdm(total=len(batch.episodes), unit="episode", leave=False, desc=f"held-out, {batch.decoding}")
        self._heldout_bar, self._train_on_done = bar, data_of(trainer).on_done
        data_of(trainer).on_done = lambda trajectory: bar.update()

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._heldout_bar is not None:
            self._heldout_bar.close()
            self._heldout_bar, data_of(trainer).on_done = None, self._train_on_done

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            self._bar.set_description(f"update {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended = self._succeeded = 0
        if not self._enabled or not trainer.is_global_zero:
            return
        text = self.line(trainer.callback_metrics)
        if self._bar is not None:
            self._bar.set_description("rollouts")
            self._bar.set_postfix_str(text)
            self._bar.update()
        else:
            print(f"iteration {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}", flush=True)

    @staticmethod
    def line(metrics: dict[str, Any]) -> str:
        """What one iteration did, for people. `metrics`: logged scalars by tag (docs/watching.md)."""
        value = {name: float(v) for name, v in metrics.items()}
        text = (
            f"success {value['rollout/success']:.2f}  "
            f"chunks {value['chunks/kept']:.0f}/{value['chunks/real']:.0f}  "
            f"rollout {value['time/rollout_s']:.1f}s  update {value['time/update_s']:.1f}s"
        )
        if "time/iteration_s" not in value:  # callbacks.timing=null
            return text
        shares = (f"{part} {100 * value[f'split/{part}_s'] / value['time/iteration_s']:.0f}%" for part in PARTS)
        return f"{text}  ({' '.join(shares)})"

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
