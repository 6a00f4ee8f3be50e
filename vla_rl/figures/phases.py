"""Figures of one run: where chunks go (PCM Fig 6), what C_c is (Fig 1), and which budget it suggests (Fig 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vla_rl.figures.colours import PHASE_COLOURS as COLOURS
from vla_rl.functional.divergence import cumulative_share, knee
from vla_rl.functional.phases import PHASES

MARKERS = ("o", "s", "^", "D", "v")
MAX_MARKERS = 25  # per line; more would be one thick line

History = Sequence[dict]  # per iteration, from `callbacks.masks.pcm.PCM`


def draw_allocation(
    iterations: Sequence[int],
    real: Sequence[Sequence[int]],
    kept: Sequence[Sequence[int]],
    phases: Sequence[str] = PHASES,
) -> Figure:
    """Stacked areas per iteration: shares of the real chunks, shares of the kept ones, numbers kept."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    cast(ConstrainedLayoutEngine, figure.get_layout_engine()).set(wspace=0.05)
    left, middle, right = figure.subplots(1, 3)
    real_IF, kept_IF = torch.tensor(real), torch.tensor(kept)
    edges = [*(i - 0.5 for i in iterations), iterations[-1] + 0.5]
    for axes, count_IF, title in (
        (left, real_IF, "Real chunks"),
        (middle, kept_IF, "Kept chunks"),
    ):
        share_IF = 100 * count_IF / count_IF.sum(1, keepdim=True).clamp(min=1)
        _stacked(axes, edges, share_IF, phases)
        axes.set(title=title, ylabel="share (%)", ylim=(0, 100))
    _stacked(right, edges, kept_IF, phases)
    right.stairs(real_IF.sum(1).numpy(), edges, baseline=None, color="black", linewidth=1.2)
    right.set(title="Kept chunks (line: real chunks)", ylabel="chunks per iteration")
    right.set_ylim(0, 1.08 * max(int(real_IF.sum(1).max()), 1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(phases), frameon=False)
    return figure


def draw_divergence(history: History, phases: Sequence[str] = PHASES) -> Figure:
    """Over iterations: the divergence C_c of each phase, with and without gripper, and its keep probability."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    cast(ConstrainedLayoutEngine, figure.get_layout_engine()).set(wspace=0.05)
    panels = (
        ("divergence", "Divergence (line: mean of 5 iterations)", "$C_c$, all action dimensions"),
        ("divergence_no_gripper", "Divergence without the gripper", "$C_c$, gripper left out"),
        ("keep_prob", "Keep probability", "relative weight of the phase"),
    )
    for axes, (key, title, label) in zip(figure.subplots(1, 3), panels, strict=True):
        for phase, name in enumerate(phases):
            values = [row[key][phase] for row in history]
            style = {"color": COLOURS[phase % len(COLOURS)], "marker": MARKERS[phase % len(MARKERS)]}
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
    figure.legend(*handles, loc="outside lower center", ncols=len(phases), frameon=False)
    return figure


def draw_phase_divergence(history: History, phases: Sequence[str] = PHASES) -> Figure:
    """One bar per phase: C_c averaged over the iterations that know it, with and without gripper (PCM Fig 1)."""
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for offset, key, label, colour in (
        (-0.2, "divergence", "all action dimensions", COLOURS[2]),
        (0.2, "divergence_no_gripper", "without the gripper", COLOURS[4]),
    ):
        mean_F = torch.tensor([row[key] for row in history], dtype=torch.float64).nanmean(0)
        bars = axes.bar(
            [i + offset for i in range(len(phases))],
            mean_F.nan_to_num(nan=0.0).tolist(),
            0.4,
            label=label,
            color=colour,
        )
        axes.bar_label(bars, ["-" if math.isnan(v) else f"{v:.2f}" for v in mean_F.tolist()], fontsize=8)
    axes.set_xticks(range(len(phases)), phases)
    axes.set(title=f"Success-failure divergence, mean of {len(history)} iterations", ylabel="$C_c$")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def draw_cumulative_divergence(history: History, phases: Sequence[str] = PHASES) -> Figure:
    """Share of the total C_c against the fraction of chunks kept, best first, with its knee (PCM Fig 8, Appendix D).

    Every chunk has its phase's C_c, averaged over the run; chunks are those of the whole run.
    """
    score_F = torch.tensor([row["divergence"] for row in history], dtype=torch.float64).nanmean(0)
    chunks_F = torch.tensor([row["chunks"] for row in history], dtype=torch.float64).sum(0)
    fraction, share = cumulative_share(score_F, chunks_F)
    corner = knee(fraction, share)
    chunks = float(fraction[corner] * chunks_F.sum()) / sum(row["trajectories"] for row in history)
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="chunks drawn uniformly")
    axes.plot(fraction.tolist(), share.tolist(), color=COLOURS[2], marker="o", markersize=4)
    order = score_F.nan_to_num(nan=0.0).argsort(descending=True, stable=True).tolist()
    for i, phase in enumerate(order):
        if chunks_F[phase] > 0:
            middle = (float(fraction[i] + fraction[i + 1]) / 2, float(share[i] + share[i + 1]) / 2)
            axes.annotate(phases[phase], middle, xytext=(6, -10), textcoords="offset points", fontsize=8)
    axes.axvline(
        float(fraction[corner]), color=COLOURS[1], linestyle="--",
        label=f"knee: {chunks:.1f} chunks of a trajectory, {100 * float(share[corner]):.0f}% of $C_c$",
    )  # fmt: skip
    axes.set(xlabel="fraction of chunks kept", ylabel="share of the total $C_c$", xlim=(0, 1), ylim=(0, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values up to each one, NaN left out; NaN where all of them are."""
    value_I = torch.tensor(values)
    return [float(value_I[max(0, i + 1 - window) : i + 1].nanmean()) for i in range(len(values))]


def _sparse(values: Sequence[float]) -> int:
    """Every how many values to draw a marker, so that a long line does not turn into a thick one."""
    return max(1, len(values) // MAX_MARKERS)


def _stacked(axes: Axes, edges: Sequence[float], value_IF: Tensor, phases: Sequence[str]) -> None:
    """One step per iteration (an area would show nothing of a single one)."""
    top_IF = value_IF.cumsum(1)
    for phase, (top, bottom) in enumerate(zip(top_IF.unbind(1), (top_IF - value_IF).unbind(1), strict=True)):
        colour = COLOURS[phase % len(COLOURS)]
        axes.stairs(top.numpy(), edges, baseline=bottom.numpy(), fill=True, label=phases[phase], color=colour)
    axes.margins(x=0)
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
