"""Where the chunks go: real and kept chunks per phase over the training, logged and drawn, whatever the mask.

Logs, per phase and summed over ranks: `phase/real` (chunks of the trajectories trained on) and `phase/kept` (those the
update paid for; padding belongs to no phase). Draws `figures/phase_allocation.png` and, when the mask keeps a `history`
of its statistics, `figures/divergence.png`; both also go to TensorBoard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from callbacks.budget import check_count
from vla_rl.distributed import all_reduce_sum
from vla_rl.phases import PHASES, trajectory_phases
from vla_rl.types import ChunkBatch

COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#8C8C8C")  # Okabe-Ito: told apart without red or green
MARKERS = ("o", "s", "^", "D", "v")
MAX_MARKERS = 25  # per line; more would be one thick line


class PhasePlot(L.Callback):
    """Counts and draws; changes nothing. Its counts are in the checkpoint, so plots go on after a resume.

    Args:
        every_iterations: iterations between two drawings; the last iteration is always drawn.
    """

    def __init__(self, every_iterations: int = 5) -> None:
        check_count("every_iterations", every_iterations, "iteration", "callbacks.phase_plot.every_iterations=5")
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
        if batch.token_mask_NLA.any():
            for index, trajectory in enumerate(batch.trajectories):  # by uid: a second pass counts nothing twice
                self._of_episode[trajectory.episode.uid] = count_phases(batch, index)
        if trainer.is_last_batch:  # not at the end of the epoch, where other callbacks already read what was logged
            self._finish_iteration(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self.iterations) % self.every_iterations == 0:
            self._draw(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self.iterations) % self.every_iterations:
            self._draw(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"iterations": self.iterations, "real": self.real, "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iterations, self.real, self.kept = (state_dict[name] for name in ("iterations", "real", "kept"))

    def _finish_iteration(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        count = sum(self._of_episode.values(), start=torch.zeros(2, len(PHASES), dtype=torch.int64))
        real, kept = all_reduce_sum(count, trainer).tolist()
        self.iterations.append(trainer.current_epoch)
        self.real.append(real)
        self.kept.append(kept)
        for name, values in (("real", real), ("kept", kept)):
            for phase, value in zip(PHASES, values, strict=True):
                pl_module.log(f"phase/{name}/{phase}", float(value), on_step=False, on_epoch=True, batch_size=1)

    def _draw(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        figures = {"phase_allocation": draw_allocation(self.iterations, self.real, self.kept)}
        for callback in trainer.callbacks:
            if getattr(callback, "history", None):
                figures["divergence"] = draw_divergence(callback.history)
        folder = Path(trainer.default_root_dir) / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure(f"figures/{name}", figure, global_step=trainer.global_step)


def count_phases(batch: ChunkBatch, index: int) -> Tensor:
    """Chunks per phase of trajectory `index` of a masked batch: int64 [2, F], all real ones and those kept."""
    phase_N = trajectory_phases(batch.trajectories[index])
    counts = batch.token_mask_NLA.flatten(1).any(1)
    kept_N = batch.chunk_N[(batch.trajectory_N == index) & counts]
    return torch.stack([phases.bincount(minlength=len(PHASES)) for phases in (phase_N, phase_N[kept_N])])


def draw_allocation(iterations: Sequence[int], real: Sequence[Sequence[int]], kept: Sequence[Sequence[int]]) -> Figure:
    """Stacked areas per iteration: shares of the real chunks, shares of the kept ones, numbers kept."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)
    left, middle, right = figure.subplots(1, 3)
    real_IF, kept_IF = torch.tensor(real), torch.tensor(kept)
    edges = [*(i - 0.5 for i in iterations), iterations[-1] + 0.5]
    for axes, count_IF, title in (
        (left, real_IF, "Real chunks"),
        (middle, kept_IF, "Kept chunks"),
    ):
        share_IF = 100 * count_IF / count_IF.sum(1, keepdim=True).clamp(min=1)
        _stacked(axes, edges, share_IF)
        axes.set(title=title, ylabel="share (%)", ylim=(0, 100))
    _stacked(right, edges, kept_IF)
    right.stairs(real_IF.sum(1).numpy(), edges, baseline=None, color="black", linewidth=1.2)
    right.set(title="Kept chunks (line: real chunks)", ylabel="chunks per iteration")
    right.set_ylim(0, 1.08 * max(int(real_IF.sum(1).max()), 1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(PHASES), frameon=False)
    return figure


def draw_divergence(history: Sequence[dict[str, Sequence[float]]]) -> Figure:
    """Over iterations: the divergence C_c of each phase, with and without gripper, and its keep probability."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)
    panels = (
        ("divergence", "Divergence (line: mean of 5 iterations)", "$C_c$, all action dimensions"),
        ("divergence_no_gripper", "Divergence without the gripper", "$C_c$, gripper left out"),
        ("keep_prob", "Keep probability", "relative weight of the phase"),
    )
    for axes, (key, title, label) in zip(figure.subplots(1, 3), panels, strict=True):
        for phase, name in enumerate(PHASES):
            values = [row[key][phase] for row in history]
            style = {"color": COLOURS[phase], "marker": MARKERS[phase]}
            if key == "keep_prob":
                axes.plot(values, drawstyle="steps-mid", markevery=_sparse(values), markersize=5, **style)
                continue
            axes.plot(values, linestyle="none", markersize=3.5, alpha=0.35, **style)  # a gap where it is NaN
            axes.plot(trailing_mean(values, 5), label=name, markevery=_sparse(values), markersize=5, **style)
        axes.set(title=title, ylabel=label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        _finish(axes)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(PHASES), frameon=False)
    return figure


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values up to each one, NaN left out; NaN where all of them are."""
    value_I = torch.tensor(values)
    return [float(value_I[max(0, i + 1 - window) : i + 1].nanmean()) for i in range(len(values))]


def _sparse(values: Sequence[float]) -> int:
    """Every how many values to draw a marker, so that a long line does not turn into a thick one."""
    return max(1, len(values) // MAX_MARKERS)


def _stacked(axes: Axes, edges: Sequence[float], value_IF: Tensor) -> None:
    """One step per iteration (an area would show nothing of a single one)."""
    top_IF = value_IF.cumsum(1)
    for phase, (top, bottom) in enumerate(zip(top_IF.unbind(1), (top_IF - value_IF).unbind(1), strict=True)):
        axes.stairs(top.numpy(), edges, baseline=bottom.numpy(), fill=True, label=PHASES[phase], color=COLOURS[phase])
    axes.margins(x=0)
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
