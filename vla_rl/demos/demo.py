"""Demonstrations: the file they are kept in.

One `.npz` holds any number of demonstrations. Frames are stored as differences to the frame before (modulo 256) and
deflated: lossless, and small because the camera stands still. Nothing in the file is pickled.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_rl.checkpoints.shipped import shipped_folder
from vla_rl.errors import UserError

SHIPPED_NAME = "demos.npz"
ABOUT = ("instruction", "suite", "task", "init_state")  # what a file says of each demonstration, beside its steps


@dataclass(slots=True)
class Demo:
    """One successful episode; row t of every tensor belongs to control step t (letters as in `vla_rl.types`)."""

    frame_THWC: Tensor  # uint8, as the simulator renders them, before the action
    proprio_TP: Tensor  # float32, before the action
    action_TA: (
        Tensor  # float32 in [-1, 1], what the learner is to do: the simulator's convention, gripper -1 open, +1 close
    )
    instruction: str
    suite: str
    task: int
    init_state: int

    def __len__(self) -> int:
        return len(self.action_TA)


def save_demos(path: str | Path, demos: Sequence[Demo]) -> None:
    """Write demonstrations to one file (`.npz`)."""
    if not demos:
        raise UserError(f"no demonstrations to save in {path}")
    about = [{name: getattr(d, name) for name in ABOUT} | {"steps": len(d)} for d in demos]
    frames = [d.frame_THWC.numpy() for d in demos]
    with open(path, "wb") as file:  # np.savez would append .npz to a bare path
        np.savez_compressed(
            file,
            about=np.array(json.dumps(about)),
            # uint8 arithmetic wraps, so the differences are exact
            frame_delta=np.concatenate([np.concatenate([f[:1], f[1:] - f[:-1]]) for f in frames]),
            proprio=torch.cat([d.proprio_TP for d in demos]).numpy().astype(np.float32),
            action=torch.cat([d.action_TA for d in demos]).numpy().astype(np.float32),
        )


def load_demos(path: str | Path) -> list[Demo]:
    """Read demonstrations: a file, all `.npz` files of a folder in order of their names, or those
    of `shipped:NAME`.

    Raises:
        UserError: nothing there, not a file of demonstrations, or values that are not finite.
    """
    shipped = shipped_folder(str(path))
    path = shipped / SHIPPED_NAME if shipped else Path(path).expanduser()
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UserError(
            f"no demonstrations at {path}: expected an .npz file or a folder of them; "
            "record some with python -m vla_rl.record, then sft.demos=FILE"
        )
    return [demo for file in files for demo in _load_file(file)]


def _load_file(path: Path) -> list[Demo]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(stored["about"].item())
            arrays = [stored[name] for name in ("frame_delta", "proprio", "action")]
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f"{path} is not a file of demonstrations ({e}); record one with python -m vla_rl.record") from e
    _check(path, about, *arrays)
    demos, start = [], 0
    for one in about:
        stop = start + one["steps"]
        frames, proprio, action = (array[start:stop] for array in arrays)
        demos.append(
            Demo(
                frame_THWC=torch.from_numpy(np.cumsum(frames, axis=0, dtype=np.uint8)),
                proprio_TP=torch.from_numpy(proprio),
                action_TA=torch.from_numpy(action),
                **{name: one[name] for name in ABOUT},
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
