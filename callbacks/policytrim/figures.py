"""Figures of PolicyTrim: steps before and after, success at each window, reward with and without the penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vla_rl.evaluation.windows import WindowResult
from vla_rl.figures.colours import PALETTE

BINS = 24  # of the histogram
OFFSET = 0.05  # of a point beside its window


def draw_steps(before: WindowResult, after: WindowResult) -> Figure:
    """Control steps of the successes, before training at the base window and after it at the widest; lines: means."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    every = [*before.steps, *after.steps] or [0]
    low, high = min(every), max(every) + 1
    edges = torch.linspace(low, high, min(BINS, high - low) + 1)
    for result, when, colour in ((before, "before", PALETTE[6]), (after, "after", PALETTE[0])):
        count = torch.histogram(torch.tensor(result.steps, dtype=torch.float32), edges).hist
        label = f"{when}, window {result.window}: {len(result.steps)} of {result.episodes}"
        if result.steps:
            label += f", mean {result.mean_steps:.1f}"
            axes.axvline(result.mean_steps, color=colour, linestyle="--", linewidth=1.5)
        axes.stairs(count.numpy(), edges.numpy(), fill=True, alpha=0.45, color=colour, label=label)
    axes.set(xlabel="control steps of a success", ylabel="held-out episodes")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_windows(results: Mapping[str, Sequence[WindowResult]]) -> Figure:
    """Held-out success, mean steps and calls of a success at each window; bars: 95% intervals."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    success, steps, calls = figure.subplots(1, 3)
    windows = [result.window for result in next(iter(results.values()))]
    colours = PALETTE[6], *reversed(PALETTE[: len(results) - 1])  # the last as in `draw_steps`
    for n, (when, found) in enumerate(results.items()):
        at = [i + OFFSET * (2 * n - len(results) + 1) for i in range(len(found))]
        style = {"fmt": "o-", "capsize": 3, "color": colours[n]}
        rates = [result.success for result in found]
        bars = [[r.rate - r.wilson_low for r in rates], [r.wilson_high - r.rate for r in rates]]
        success.errorbar(at, [r.rate for r in rates], yerr=bars, label=when, **style)
        margins = [0.0 if math.isnan(r.steps_margin) else r.steps_margin for r in found]
        steps.errorbar(at, [r.mean_steps for r in found], yerr=margins, **style)
        calls.errorbar(at, [r.calls for r in found], **style)
    success.set(ylabel="held-out success, sampled", ylim=(0, 1.02))
    steps.set(ylabel="control steps of a success")
    calls.set(ylabel="calls of a success")
    for axes in (success, steps, calls):
        axes.set(xlabel="window (control steps)", xlim=(-0.5, len(windows) - 0.5))
        axes.set_xticks(range(len(windows)), windows)
        _plain(axes)
    for axes in (steps, calls):
        axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_reward(history: Sequence[Mapping[str, float]], scores: Sequence[tuple[float, float, float]]) -> Figure:
    """Mean reward of an episode over stage 2 with and without the penalty (as the paper's Fig 4), and both against the
    steps of each success of the last iteration.

    Args:
        history: of `callbacks.policytrim.callback.PolicyTrim`.
        scores: steps, reward and penalty.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    over_time, against_steps = figure.subplots(1, 2)
    rows = [(i, row) for i, row in enumerate(history, start=1) if "reward_without_penalty" in row]
    marker = "o" if len(rows) < 10 else None
    for key, label, colour in (
        ("reward_without_penalty", "without the penalty", PALETTE[1]),
        ("reward", "with the penalty", PALETTE[0]),
    ):
        over_time.plot([i for i, _ in rows], [row[key] for _, row in rows], color=colour, label=label, marker=marker)
    over_time.set(xlabel="iteration", ylabel="mean reward of an episode")
    over_time.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for offset, colour in ((1.0, PALETTE[1]), (0.0, PALETTE[0])):
        rewards = [reward + offset * penalty for _, reward, penalty in scores]
        against_steps.plot([s for s, _, _ in scores], rewards, "o", markersize=4, alpha=0.7, color=colour)
    against_steps.set(xlabel="control steps of a success, last iteration", ylabel="its reward")
    for axes in (over_time, against_steps):
        _plain(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
