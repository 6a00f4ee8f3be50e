"""LIBERO's demonstration files (HDF5, one file per task): `data/demo_i` with actions, states and obs/.

`obs` at index j was recorded after action j was executed: what a policy saw before action j+1. A demonstration of T
actions therefore gives T-1 rows, observation j with action j+1.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_rl.demos.demo import Camera, Demo, StoredFrames, check_pictures
from vla_rl.demos.formats.layout import Layout, check_keys, natural, refuse, require
from vla_rl.errors import UserError

SUFFIXES = (".hdf5", ".h5")
CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")
STATE = ("ee_states", "gripper_states")  # position and axis-angle of the hand, two finger joints
OPEN_FILES = 128  # of a suite of 90 tasks, all
LARGEST_WIDTH = 1000  # numbers of a state or an action


def read_hdf5(path: Path, layout: Layout) -> list[Demo]:
    """All demonstrations of a file, in the order of their numbers. Pictures stay in the file.

    Raises:
        UserError: it is damaged, or no file of LIBERO's demonstrations.
    """
    require("h5py")
    try:
        file = _open(path, os.getpid())
        names = sorted(file["data"], key=natural)
        instruction = json.loads(file["data"].attrs["problem_info"])["language_instruction"]
        return [_read_demo(path, name, file[f"data/{name}"], "".join(instruction).strip(), layout) for name in names]
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as e:
        refuse(path, e)


def _read_demo(path: Path, name: str, group: Any, instruction: str, layout: Layout) -> Demo:
    origin = f"{path}: {name}"
    # neither groups nor links to nowhere
    obs = {key: value for key, value in group["obs"].items() if isinstance(value, require("h5py").Dataset)}
    pictures = [key for key in obs if obs[key].ndim == 4]
    cameras = layout.camera_keys([key for key in CAMERAS if key in pictures], pictures, origin)
    state = list(layout.state or STATE)
    check_keys(state, [key for key in obs if key not in pictures], origin, "sft.state")
    action = layout.action or "actions"
    check_keys([action], list(group), origin, "sft.action")
    numbers = [group[action], *(obs[key] for key in state)]
    for stored in numbers:  # before anything is read: a damaged file may promise any size
        if stored.dtype.kind not in "fiu" or stored.ndim != 2 or stored.shape[1] > LARGEST_WIDTH:
            got = f"{stored.dtype} {list(stored.shape)}"
            refuse(f"{path}: {stored.name}", f"it must hold numbers [rows, up to {LARGEST_WIDTH}], got {got}")
    check_pictures([(obs[key].dtype, obs[key].shape[1:]) for key in cameras], origin)
    lengths = {len(data) for data in [*numbers, *(obs[key] for key in cameras)]}
    if len(lengths) > 1:
        refuse(origin, f"its data sets have {' and '.join(map(str, sorted(lengths)))} rows")
    rows = max(lengths.pop() - 1, 0)
    filmed: list[Camera] = [Hdf5Camera(path, f"data/{name}/obs/{key}") for key in cameras]
    return Demo(
        frame_THWC=StoredFrames(filmed, np.arange(rows), bool(layout.turned), origin),
        proprio_TP=torch.from_numpy(np.concatenate([obs[key][:rows] for key in state], axis=1).astype(np.float32)),
        action_TA=torch.from_numpy(group[action][1:].astype(np.float32)),
        instruction=instruction,
        dataset=path.resolve().parent.name,
        origin=origin,
    )


@dataclass(slots=True)
class Hdf5Camera:
    """A data set of pictures in a file."""

    path: Path
    name: str

    def read(self, steps: Sequence[int]) -> list[np.ndarray]:
        try:
            pictures = _open(self.path, os.getpid())[self.name]
            return [pictures[step] for step in steps]
        except (OSError, KeyError) as e:
            refuse(f"{self.path}: {self.name}", e)


@functools.lru_cache(maxsize=OPEN_FILES)
def _open(path: Path, process: int) -> Any:
    """The open file. Each process has its own: a handle does not survive a fork."""
    return require("h5py").File(path, "r")
