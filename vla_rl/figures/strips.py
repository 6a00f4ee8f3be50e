"""Successes and failures side by side as film strips (PCM Fig 9), with phases and the chunks that were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from torch import Tensor

from vla_rl.figures.colours import FAILURE_COLOUR, SUCCESS_COLOUR, phase_colour
from vla_rl.figures.video import pictures
from vla_rl.functional.phases import Labeller, trajectory_phases
from vla_rl.types import Trajectory

FRAMES, ROWS = 5, 4  # pictures of a strip, strips of an outcome at most
DROPPED_ALPHA = 0.3


def draw_strips(
    trajectories: Sequence[Trajectory],
    kept: Mapping[int, Tensor] | None = None,
    label: Labeller = trajectory_phases,
) -> Figure:
    """Left successes, right failures, up to `ROWS` of each in the order given; a row is an episode from its first
    decision to its end, framed in the colour of its phase.

    Args:
        kept: indices of the chunks that were trained on, by uid; the others are drawn pale. None: nothing was
            trained on.
        label: what splits trajectories into phases.
    """
    sides = {
        "successes": [t for t in trajectories if t.success],
        "failures": [t for t in trajectories if not t.success],
    }
    rows = max(1, min(ROWS, max(map(len, sides.values()))))
    figure = Figure(figsize=(11, 1.3 * rows + 1.1), layout="constrained")
    for half, (name, members) in zip(
        cast(np.ndarray, figure.subfigures(1, 2, wspace=0.03)), sides.items(), strict=True
    ):
        shown = members[:ROWS]
        half.suptitle(name if len(shown) == len(members) else f"{name} ({len(shown)} of {len(members)})")
        _draw_side(half, shown, rows, kept, label)
    handles = [Patch(color=phase_colour(index), label=phase) for index, phase in enumerate(label.phases)]
    handles += [Patch(color=SUCCESS_COLOUR, label="end: success"), Patch(color=FAILURE_COLOUR, label="end: failure")]
    title = None if kept is None else "pale: not trained on"
    figure.legend(
        handles=handles, title=title, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    return figure


def _draw_side(
    half: SubFigure,
    shown: Sequence[Trajectory],
    rows: int,
    kept: Mapping[int, Tensor] | None,
    label: Labeller,
) -> None:
    axes_RF = cast(np.ndarray, half.subplots(rows, FRAMES, squeeze=False))
    for axes in axes_RF.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    if not shown:
        half.text(0.5, 0.5, "none", ha="center", va="center", color="#666666")
    for axes_F, trajectory in zip(axes_RF, shown, strict=False):
        kept_K = None if kept is None else kept.get(trajectory.episode.uid, torch.tensor([]))
        _draw_strip(axes_F, trajectory, kept_K, label)


def _draw_strip(axes_F: Sequence, trajectory: Trajectory, kept_K: Tensor | None, label: Labeller) -> None:
    frames, phase_N = pictures(trajectory), label(trajectory).tolist()
    outcome = SUCCESS_COLOUR if trajectory.success else FAILURE_COLOUR
    at = torch.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().int().tolist()
    for axes, n in zip(axes_F, at, strict=False):
        ended = n == len(trajectory)
        dropped = kept_K is not None and not ended and n not in kept_K
        colour = outcome if ended else phase_colour(phase_N[n])
        axes.imshow(frames[n], alpha=DROPPED_ALPHA if dropped else 1.0)
        axes.set_xlabel(f"{trajectory.steps} steps" if ended else f"chunk {n + 1}", fontsize=9)
        axes.spines[:].set(visible=True, color=colour, linewidth=3)
    episode = trajectory.episode
    axes_F[0].set_ylabel(f"task {episode.task}\nstate {episode.init_state}", fontsize=9)
