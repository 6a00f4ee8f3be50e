"""What a critic expects along episodes that succeeded and along those that failed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vla_rl.figures.colours import FAILURE_COLOUR, SUCCESS_COLOUR
from vla_rl.functional.gae import explained_variance


def draw_values(episodes: Sequence[tuple[Tensor, float]], iteration: int) -> Figure:
    """Values along each episode (thin) and on average (thick), and how much of the rewards' variance they explain.

    Args:
        episodes: values of the decisions, and the reward in the end.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    values, explained = figure.subplots(1, 2)
    middle = (max(r for _, r in episodes) + min(r for _, r in episodes)) / 2
    sides = {
        "success": ([v for v, r in episodes if r > 0 and r >= middle], SUCCESS_COLOUR),
        "failure": ([v for v, r in episodes if r <= 0 or r < middle], FAILURE_COLOUR),
    }
    for name, (members, colour) in sides.items():
        for value_N in members:
            values.plot(range(1, len(value_N) + 1), value_N, color=colour, linewidth=0.7, alpha=0.3)
        if members:
            label = f"{name} ({len(members)})"
            mean = _means(members)
            values.plot(range(1, len(mean) + 1), mean, color=colour, linewidth=2.5, label=label)
    values.set(title=f"Values along episodes, iteration {iteration}", xlabel="decision", ylabel="expected reward")
    values.legend(frameon=False)
    points = _explained(episodes)
    explained.plot(*zip(*points, strict=True) if points else ([], []), marker="o", color="black")
    explained.set(title="Explained variance of the reward", xlabel="decision", ylim=(min(-0.1, *_low(points)), 1))
    for axes in (values, explained):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _means(members: Sequence[Tensor]) -> list[float]:
    """Mean value at each decision, over the episodes that are that long."""
    longest = max(len(value_N) for value_N in members)
    return [float(torch.stack([v[n] for v in members if len(v) > n]).mean()) for n in range(longest)]


def _explained(episodes: Sequence[tuple[Tensor, float]]) -> list[tuple[int, float]]:
    """Decision and explained variance, where it can be said."""
    points = []
    for n in range(max(len(value_N) for value_N, _ in episodes)):
        at = [(v[n], r) for v, r in episodes if len(v) > n]
        rewards = torch.tensor([r for _, r in at])
        if (share := explained_variance(torch.stack([v for v, _ in at]), rewards)) is not None:
            points.append((n + 1, share))
    return points


def _low(points: Sequence[tuple[int, float]]) -> list[float]:
    """Room below for values that are worse than the mean, but not for outliers."""
    return [max(-0.5, min((share for _, share in points), default=0.0))]
