"""Where the chunks go: real and kept chunks per phase over the training, logged and drawn, whatever the mask.

Logs, per phase of the mask's labeller and summed over ranks: `phase/real` (chunks of the trajectories trained on) and
`phase/kept` (those that were trained on; padding belongs to no phase). Draws `figures/phase_allocation.png` and, when
the mask keeps a `history` of its statistics, `divergence.png`, `phase_divergence.png` and `cumulative_divergence.png`;
all also go to TensorBoard.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.masks.base import labeller_of
from callbacks.masks.pcm import PCM
from callbacks.monitors.save_figures import save_figures
from vla_rl.checks import check_count
from vla_rl.distributed.collectives import all_reduce_sum
from vla_rl.figures.phases import (
    draw_allocation,
    draw_cumulative_divergence,
    draw_divergence,
    draw_phase_divergence,
)
from vla_rl.functional.phases import Labeller
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.trainer_state import callbacks_of
from vla_rl.types import ChunkBatch


class PhasePlot(RolloutCallback):
    """Counts and draws; changes nothing. Its counts are in the checkpoint, so plots go on after a resume.

    Args:
        every_iterations: iterations between two drawings; the last iteration is always drawn.
    """

    def __init__(self, every_iterations: int = 5) -> None:
        check_count("callbacks.phase_plot.every_iterations", every_iterations, 5)
        self.every_iterations = every_iterations
        self.iterations: list[int] = []
        self.real: list[list[int]] = []  # per iteration and phase
        self.kept: list[list[int]] = []
        self._of_episode: dict[int, Tensor] = {}  # this iteration: uid -> int64 [2, F], real and kept

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._of_episode = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: ChunkBatch, batch_idx: int
    ) -> None:
        if not batch.stand_in:
            label = labeller_of(callbacks_of(trainer))
            for index, trajectory in enumerate(batch.trajectories):  # by uid: a second pass counts nothing twice
                self._of_episode[trajectory.episode.uid] = count_phases(batch, index, label)
        if trainer.is_last_batch:  # not at the end of the epoch, where other callbacks already read what was logged
            self._finish_iteration(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self.iterations) % self.every_iterations == 0:
            self._draw(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self.iterations) % self.every_iterations:
            self._draw(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"iterations": self.iterations, "real": self.real, "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iterations, self.real, self.kept = (state_dict[name] for name in ("iterations", "real", "kept"))

    def _finish_iteration(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        phases = labeller_of(callbacks_of(trainer)).phases
        count = sum(self._of_episode.values(), start=torch.zeros(2, len(phases), dtype=torch.int64))
        real, kept = all_reduce_sum(count, trainer).tolist()
        self.iterations.append(trainer.current_epoch)
        self.real.append(real)
        self.kept.append(kept)
        for name, values in (("real", real), ("kept", kept)):
            for phase, value in zip(phases, values, strict=True):
                pl_module.log(f"phase/{name}/{phase}", float(value), on_step=False, on_epoch=True, batch_size=1)

    def _draw(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            save_figures(lambda: self._figures(trainer), trainer)

    def _figures(self, trainer: L.Trainer) -> dict[str, Figure]:
        figures = {
            "phase_allocation": draw_allocation(
                self.iterations, self.real, self.kept, labeller_of(callbacks_of(trainer)).phases
            )
        }
        for mask in (callback for callback in callbacks_of(trainer) if isinstance(callback, PCM) and callback.history):
            phases = mask.scores.phases
            figures["divergence"] = draw_divergence(mask.history, phases)
            if any(value == value for row in mask.history for value in row["divergence"]):  # not NaN: known
                figures["phase_divergence"] = draw_phase_divergence(mask.history, phases)
                figures["cumulative_divergence"] = draw_cumulative_divergence(mask.history, phases)
        return figures


def count_phases(batch: ChunkBatch, index: int, label: Labeller) -> Tensor:
    """Chunks per phase of trajectory `index` of a masked batch: int64 [2, F], all real ones and those kept."""
    phase_N = label(batch.trajectories[index])
    kept_K = phase_N[batch.chunks_of(index)]
    return torch.stack([phases.bincount(minlength=len(label.phases)) for phases in (phase_N, kept_K)])
