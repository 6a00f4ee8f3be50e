"""This project's own file of demonstrations, `.npz`.

Frames are stored as differences to the frame before (modulo 256) and deflated: lossless, and small because the camera
stands still. Nothing in the file is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_rl.demos.demo import Demo
from vla_rl.errors import UserError

DATASETS = {"metaworld": "metaworld", "tabletop": "maniskill"}  # of suites that are not LIBERO's
ABOUT = ("instruction", "suite", "task", "init_state")  # what a file says of each demonstration, beside its steps


def save_demos(path: str | Path, demos: Sequence[Demo]) -> None:
    """Write demonstrations to one file (`.npz`)."""
    if not demos:
        raise UserError(f"no demonstrations to save in {path}")
    about = [{name: getattr(d, name) for name in ABOUT} | {"steps": len(d)} for d in demos]
    frames = [d.frame_THWC[range(len(d))].numpy() for d in demos]
    with open(path, "wb") as file:  # np.savez would append .npz to a bare path
        np.savez_compressed(
            file,
            about=np.array(json.dumps(about)),
            # uint8 arithmetic wraps, so the differences are exact
            frame_delta=np.concatenate([np.concatenate([f[:1], f[1:] - f[:-1]]) for f in frames]),
            proprio=torch.cat([d.proprio_TP for d in demos]).numpy().astype(np.float32),
            action=torch.cat([d.action_TA for d in demos]).numpy().astype(np.float32),
        )


def read_npz(path: Path) -> list[Demo]:
    """All demonstrations of a file.

    Raises:
        UserError: not a file of demonstrations, or values that are not finite.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            about = json.loads(stored["about"].item())
            arrays = [stored[name] for name in ("frame_delta", "proprio", "action")]
    except Exception as e:  # numpy and zipfile name a damaged file by a dozen types
        raise UserError(f"{path} is not a file of demonstrations ({e}); record one with python -m vla_rl.record") from e
    _check(path, about, *arrays)
    demos, start = [], 0
    for number, one in enumerate(about):
        stop = start + one["steps"]
        frames, proprio, action = (array[start:stop] for array in arrays)
        demos.append(
            Demo(
                frame_THWC=torch.from_numpy(np.cumsum(frames, axis=0, dtype=np.uint8)),
                proprio_TP=torch.from_numpy(proprio),
                action_TA=torch.from_numpy(action),
                **{name: one[name] for name in ABOUT},
                dataset=DATASETS.get(str(one["suite"]), f"libero_{one['suite']}"),
                origin=f"{path}: demonstration {number}",
            )
        )
        start = stop
    return demos


def _check(path: Path, about: Any, frames: np.ndarray, proprios: np.ndarray, actions: np.ndarray) -> None:
    """Raise UserError unless the arrays hold one row for each control step that `about` counts, of finite numbers."""

    def refuse(what: str) -> None:
        raise UserError(f"{path} is not a file of demonstrations: {what}; record one with python -m vla_rl.record")

    objects = isinstance(about, list) and all(isinstance(one, dict) for one in about)
    if not objects or not all({*ABOUT, "steps"} <= one.keys() for one in about):
        refuse(f"'about' must be a list of objects with steps, {', '.join(ABOUT)}")
    if not about or not all(type(one["steps"]) is int and one["steps"] > 0 for one in about):
        refuse("'steps' of each demonstration must be an integer of at least 1")
    steps = sum(one["steps"] for one in about)
    for name, array, kind, dims in (
        ("frame_delta", frames, np.uint8, 4),
        ("proprio", proprios, np.float32, 2),
        ("action", actions, np.float32, 2),
    ):
        if array.dtype != kind or array.ndim != dims or len(array) != steps:
            refuse(
                f"{name!r} must be {np.dtype(kind)} with {dims} axes and {steps} rows, one per control step, got "
                f"{array.dtype} {list(array.shape)}"
            )
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise UserError(f"{path}: {name!r} holds NaN or infinite values, first in row {row}: drop that episode")
    _, height, width, channels = frames.shape
    if not 0 < height == width or not channels or channels % 3:
        refuse(f"'frame_delta' must hold square RGB pictures, got {list(frames.shape)}")
