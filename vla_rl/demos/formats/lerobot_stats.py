"""The statistics that a LeRobotDataset keeps of every feature: of its numbers, and of its pictures' channels.

A picture's values are integers 0..255, so counting them is enough: counts of episodes add up to those of the set.
"""

from __future__ import annotations

from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

Statistics = dict[str, np.ndarray]  # min, max, mean, std, count, and the quantiles


def number_statistics(rows: np.ndarray) -> Statistics:
    """Over rows [n] or [n, D]; each statistic float64 [D], `count` int64 [1] = n.

    Example: rows 0, 1, 2, 3 -> min 0, max 3, mean 1.5, std sqrt(1.25), q10 0.3, q50 1.5 (between neighbours, linear).
    """
    values = rows.reshape(len(rows), -1).astype(np.float64)
    basic = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    quantiles = {name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()}
    return basic | {"count": np.array([len(rows)])} | quantiles


def picture_counts(frame_THWC: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel: uint8 [T, H, W, 3] to int64 [3, 256]."""
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(frame_THWC, -1, 0)])


def picture_statistics(counts: np.ndarray, *, frames: int) -> Statistics:
    """Of pixels as numbers from 0 to 1, from `picture_counts`; each statistic float64 [3, 1, 1], `count` [1] = frames.

    A quantile is the smallest value that at least that share of the pixels does not exceed.

    Example: a channel of one pixel 0 and three pixels 255 -> min 0, max 1, mean 0.75, q10 0, q50 1.
    """
    values = np.arange(256) / 255
    total = counts.sum(1)
    mean = counts @ values / total
    std = np.sqrt(np.maximum(counts @ values**2 / total - mean**2, 0))
    present = counts > 0
    below = counts.cumsum(1)
    found = {
        "min": values[present.argmax(1)],
        "max": values[255 - present[:, ::-1].argmax(1)],
        "mean": mean,
        "std": std,
    }
    # the product is rounded up where it is no integer: 3 of 4 pixels are the smallest number that is 0.7 of them
    found |= {name: values[(below >= np.ceil(share * total)[:, None]).argmax(1)] for name, share in QUANTILES.items()}
    return {name: value[:, None, None] for name, value in found.items()} | {"count": np.array([frames])}


def nested(statistics: Statistics) -> dict[str, Any]:
    """As lists, for JSON and parquet."""
    return {name: value.tolist() for name, value in statistics.items()}
