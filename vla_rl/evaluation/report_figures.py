"""The figures of an evaluation's report: success by task, and every episode's outcome."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vla_rl.evaluation.report import Report
from vla_rl.figures.colours import FAILURE_PALE, PALETTE, SUCCESS_COLOUR

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
WRAP = 44  # characters of a task's name on a line
STATES = 100  # episodes of a task on a line of the outcomes' figure


def draw_tasks(report: Report) -> Figure:
    """A dot with its 95% Wilson interval per task and checkpoint; below, all tasks together."""
    rows: list[tuple[int | None, str]] = [(t, _name(report, t)) for t in report.tasks] if len(report.tasks) > 1 else []
    rows.append((None, "overall"))
    arms = report.arms
    figure = Figure(figsize=(9, 0.9 + len(rows) * (0.42 + 0.16 * len(arms))), layout="constrained")
    axes = figure.subplots()
    for a, arm in enumerate(arms):
        rates = [report.overall(arm) if task is None else report.of_task(arm, task) for task, _ in rows]
        y = np.arange(len(rows)) + 0.6 * ((a + 0.5) / len(arms) - 0.5)
        x = np.array([rate.rate for rate in rates])
        error = [x - [rate.wilson_low for rate in rates], [rate.wilson_high for rate in rates] - x]
        marker, colour = MARKERS[a % len(MARKERS)], PALETTE[a % len(PALETTE)]
        half = np.clip(error, 0, None)
        axes.errorbar(x, y, xerr=half, label=arm.label, fmt=marker, color=colour, capsize=3, markersize=6)
    axes.set_yticks(range(len(rows)), [name for _, name in rows], fontsize=9)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.4, -0.6), xlabel="success, 95% Wilson interval")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(arms) > 1:
        figure.legend(loc="outside upper center", ncols=min(len(arms), 8), frameon=False)
    return figure


def draw_outcomes(report: Report) -> Figure:
    """Every episode a cell: a row per task and checkpoint, columns in the order of initial states, the samples of one
    beside each other. Rows of the same task stand under each other, so that a column is one initial state."""
    lines = [(task, arm, part) for task in report.tasks for part in range(_parts(report, task)) for arm in report.arms]
    columns = min(STATES, max(len(_of_task(report, task)) for task in report.tasks))
    cells = np.full((len(lines), columns), np.nan)
    for row, (task, arm, part) in enumerate(lines):
        shown = _of_task(report, task)[part * STATES : (part + 1) * STATES]
        cells[row, : len(shown)] = [arm.success_E[i] for i in shown]
    figure = Figure(figsize=(11, 1.0 + 0.26 * len(lines)), layout="constrained")
    axes = figure.subplots()
    colours = ListedColormap([FAILURE_PALE, SUCCESS_COLOUR])
    axes.pcolormesh(cells, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=0.5)
    axes.invert_yaxis()
    for row in range(1, len(lines)):
        if lines[row][0] != lines[row - 1][0]:
            axes.axhline(row, color="black", linewidth=1)  # between tasks
    names = [_line_name(report, *line) for line in lines]
    axes.set_yticks(np.arange(len(lines)) + 0.5, names, fontsize=8)
    axes.set(xlabel="initial states, in order")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    handles = [Patch(color=SUCCESS_COLOUR, label="success"), Patch(color=FAILURE_PALE, label="failure")]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _of_task(report: Report, task: int) -> list[int]:
    """Its episodes, in the order of initial states."""
    own = [i for i, episode in enumerate(report.episodes) if episode.task == task]
    return sorted(own, key=lambda i: report.episodes[i].init_state)


def _parts(report: Report, task: int) -> int:
    return -(-len(_of_task(report, task)) // STATES)


def _line_name(report: Report, task: int, arm, part: int) -> str:
    first = _of_task(report, task)[part * STATES]
    return f"task {task}, from state {report.episodes[first].init_state}: {arm.label}"


def _name(report: Report, task: int) -> str:
    return "\n".join(textwrap.wrap(f"{task} {report.instructions.get(task, '')}", WRAP, max_lines=2))
