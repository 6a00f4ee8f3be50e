"""Demonstrations: the file they are kept in.

One `.npz` holds any number of demonstrations. Frames are stored as differences to the frame before (modulo 256) and
deflated: lossless, and small because the camera stands still. Nothing in the file is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_rl.checkpoints.shipped import shipped_folder

SHIPPED_NAME = "demos.npz"


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
        raise ValueError(f"no demonstrations to save in {path}")
    about = [
        {"instruction": d.instruction, "suite": d.suite, "task": d.task, "init_state": d.init_state, "steps": len(d)}
        for d in demos
    ]
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
        ValueError: nothing there, or not a file of demonstrations.
    """
    shipped = shipped_folder(str(path))
    path = shipped / SHIPPED_NAME if shipped else Path(path)
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise ValueError(
            f"no demonstrations at {path}: expected an .npz file or a folder of them; "
            "record some with tools/collect_demos.py, then sft.demos=FILE"
        )
    return [demo for file in files for demo in _load_file(file)]


def _load_file(path: Path) -> list[Demo]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(stored["about"].item())
            frames, proprios, actions = stored["frame_delta"], stored["proprio"], stored["action"]
    except (KeyError, ValueError, OSError) as e:
        raise ValueError(f"{path} is not a file of demonstrations ({e}); record one with tools/collect_demos.py") from e
    demos, start = [], 0
    for one in about:
        stop = start + one.pop("steps")
        frame_THWC = np.cumsum(frames[start:stop], axis=0, dtype=np.uint8)
        demos.append(
            Demo(
                frame_THWC=torch.from_numpy(frame_THWC),
                proprio_TP=torch.from_numpy(proprios[start:stop]),
                action_TA=torch.from_numpy(actions[start:stop]),
                **one,
            )
        )
        start = stop
    return demos
