"""Figures that compare runs: success (PCM Fig 3), cost (Fig 4), budgets and ablations (Fig 5). One run is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vla_rl.figures.colours import PALETTE
from vla_rl.functional.statistics import MeanInterval
from vla_rl.run.compare import Run, arms, success_interval
from vla_rl.run.extras import extra

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def draw_success(runs: Sequence[Run]) -> Figure:
    """Success over iterations and over seconds: a thin line per run, a thick one for the mean of an arm's seeds; dots
    with bars are success held out before and after training, with its 95% interval (`success_interval`)."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    by_iteration, by_time = figure.subplots(1, 2, sharey=True)
    for colour, (arm, members) in _coloured(runs):
        curves = [_curve(run) for run in members]
        style = {"color": colour, "marker": "." if len(curves[0][0]) < 3 else None}
        for iterations, seconds, rates in curves if len(curves) > 1 else []:
            by_iteration.plot(iterations, rates, linewidth=1, alpha=0.25, **style)
            by_time.plot(seconds, rates, linewidth=1, alpha=0.25, **style)
        shortest = min(len(rates) for _, _, rates in curves)
        iterations, seconds, rates = np.mean([np.array(curve)[:, :shortest] for curve in curves], axis=0)
        by_iteration.plot(iterations, rates, label=arm, **style)
        by_time.plot(seconds, rates, **style)
        last = max(len(run.rows) for run in members)
        spent = sum(run.seconds[-1] for run in members) / len(members)
        for axes, end in ((by_iteration, last), (by_time, spent)):
            for at, when in ((0.0, "success_before"), (end, "success_after")):
                if members[0].summary and (rate := success_interval(members, when, "sampled")):
                    axes.errorbar(at, rate.mean, yerr=_bar(rate), fmt="o", color=colour, capsize=3)
    by_iteration.set(xlabel="iteration", ylabel="success", ylim=(0, 1))
    by_time.set(xlabel="seconds of rollouts and updates")
    return _finished(figure)


def _curve(run: Run) -> tuple[list[float], list[float], list[float]]:
    """Iterations done, seconds, success."""
    iterations, rates = zip(*run.success, strict=True)
    return list(iterations), [run.seconds[n - 1] for n in iterations], list(rates)


def draw_cost(runs: Sequence[Run]) -> Figure:
    """Seconds to thresholds of success, seconds of updates over iterations, and activation memory where it was
    measured."""
    measured = any("memory/activations_mb" in row for run in runs for row in run.rows)
    figure = Figure(figsize=(13 if measured else 9, 3.8), layout="constrained")
    thresholds, update, *memory = figure.subplots(1, 3 if measured else 2)
    for index, (colour, (arm, members)) in enumerate(_coloured(runs)):
        reached = [(t, [s for run in members if (s := run.seconds_to(t)) is not None]) for t in THRESHOLDS]
        points = [(t, sum(s) / len(s)) for t, s in reached if len(s) == len(members)]
        thresholds.plot(*zip(*points, strict=True) if points else ([], []), marker="o", color=colour)
        for axes in memory:
            used = [max(row.get("memory/activations_mb", 0.0) for row in run.rows) for run in members]
            axes.bar(index, sum(used) / len(used), color=colour)
            axes.set(title="Activation memory", ylabel="MB", xticks=[])
        for i, run in enumerate(members):
            update.plot(range(1, len(run.rows) + 1), run.update_seconds, color=colour, label=None if i else arm)
    if not any(len(line.get_xdata()) for line in thresholds.lines):
        _leave_empty(thresholds, "not reached")
    thresholds.set(title="Time to success (all seeds reach it)", xlabel="success", ylabel="seconds", xlim=(0.25, 1))
    update.set(title="Updates", xlabel="iteration", ylabel="cumulative seconds")
    return _finished(figure)


def draw_arms(runs: Sequence[Run]) -> Figure:
    """Held-out success after training with its 95% interval (`success_interval`): a bar for each arm, and a line for
    each mask over its budgets where one has runs of several."""
    found = {
        arm: (colour, members[0], rate)
        for colour, (arm, members) in _coloured(runs)
        if (rate := success_interval(members, "success_after", "sampled")) is not None
    }
    masks: dict[str, list[tuple[int, MeanInterval, str]]] = {}
    for colour, run, rate in found.values():
        if run.budget is not None:
            masks.setdefault(run.mask, []).append((run.budget, rate, colour))
    swept = any(len(points) > 1 for points in masks.values())
    figure = Figure(figsize=(11 if swept else 6, 4), layout="constrained")
    *sweeps, bars = figure.subplots(1, 1 + swept, sharey=True, squeeze=False)[0]
    for index, (colour, _, rate) in enumerate(found.values()):
        bars.bar(index, rate.mean, color=colour, yerr=_bar(rate), capsize=3)
    bars.set_xticks(range(len(found)), list(found), rotation=30, ha="right")
    bars.set(title="Arms", ylim=(0, 1))
    for sweep in sweeps:
        _draw_sweep(sweep, masks)
    figure.axes[0].set(ylabel="held-out success, sampled")
    for axes in figure.axes:
        _plain(axes)
    return figure


def _draw_sweep(axes: Axes, masks: Mapping[str, list[tuple[int, MeanInterval, str]]]) -> None:
    """Budgets along x; each mask in the colour of its first arm."""
    for mask, points in masks.items():
        budgets, rates, _ = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        error = list(zip(*((bar[0][0], bar[1][0]) for bar in map(_bar, rates)), strict=True))
        means, colour = [rate.mean for rate in rates], points[0][2]
        axes.errorbar(budgets, means, yerr=error, marker="o", capsize=3, color=colour, label=mask)
    axes.set(title="Budgets", xlabel="chunks kept of a trajectory")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)


def write_figures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """`success.png`, `cost.png` and `arms.png` in the folder, which is made; those that could be drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in (("success", draw_success), ("cost", draw_cost), ("arms", draw_arms)):
        path = folder / f"{name}.png"
        with extra(f"drawing the figure {name}"):
            draw(runs).savefig(path, dpi=150)
            paths.append(path)
    return paths


def _coloured(runs: Sequence[Run]) -> list[tuple[str, tuple[str, list[Run]]]]:
    grouped = arms(runs)
    return list(zip(PALETTE * (len(grouped) // len(PALETTE) + 1), grouped.items(), strict=False))


def _bar(rate: MeanInterval) -> list[list[float]]:
    return [[rate.mean - rate.low], [rate.high - rate.mean]]


def _leave_empty(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", transform=axes.transAxes)
    axes.set(yticks=[])


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _finished(figure: Figure) -> Figure:
    for axes in figure.axes:
        _plain(axes)
    handles = [h for axes in figure.axes for h in zip(*axes.get_legend_handles_labels(), strict=True)]
    figure.legend(*zip(*handles, strict=True), loc="outside lower center", ncols=4, frameon=False)
    return figure
