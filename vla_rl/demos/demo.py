"""`Demo`: one demonstration, and the frames of one that stay in their files until somebody asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vla_rl.errors import UserError

NOOP = 1e-4  # norm of a motion that is none, as in the scripts that made the published data sets
RANGE = 1.0 + 1e-3  # largest command that is taken; a file's rounding may exceed 1 a little
# what files say of an episode: by field, the types that are taken, and how a message calls them
FACTS: dict[str, tuple[tuple[type, ...], str]] = {
    "instruction": ((str,), "text"),
    "suite": ((str, NoneType), "text or null"),
    "task": ((int, NoneType), "an integer or null"),
    "init_state": ((int, NoneType), "an integer or null"),
    "seed": ((int, NoneType), "an integer or null"),
    "success": ((bool,), "true or false"),
}


class Camera(Protocol):
    """The stored pictures of one camera during one episode."""

    def read(self, steps: Sequence[int]) -> list[np.ndarray]:
        """Those of the given control steps (any order, repeats allowed), as they are stored."""
        ...


@dataclass(slots=True)
class StoredFrames:
    """Frames of a demonstration that are read from its files when rows are asked for: `frames[[3, 0]]`.

    Args:
        cameras: their pictures lie one after the other on the frame's channels.
        steps: the stored step that each row shows.
        turned: the file's pictures are turned by 180 degrees against what the simulator renders.
        origin: file and episode, for messages.
    """

    cameras: list[Camera]
    steps: np.ndarray
    turned: bool
    origin: str

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        """uint8 [n, H, W, C], as the simulator would have rendered them.

        Raises:
            UserError: a picture cannot be read, or they are not square RGB pictures of one size.
        """
        wanted = self.steps[list(rows)].tolist()
        pictures = [camera.read(wanted) for camera in self.cameras]
        check_pictures([(one.dtype, one.shape) for of_camera in pictures for one in of_camera], self.origin)
        frame = np.concatenate([np.stack(of_camera) for of_camera in pictures], axis=-1)
        return torch.from_numpy(np.ascontiguousarray(frame[:, ::-1, ::-1] if self.turned else frame))


@dataclass(slots=True)
class Demo:
    """One episode; row t belongs to control step t (letters as in `vla_rl.types`)."""

    frame_THWC: Tensor | StoredFrames  # uint8, as the simulator renders them, before the action
    proprio_TP: Tensor  # float32, before the action
    action_TA: Tensor  # float32 in [-1, 1], what the learner is to do; the simulator's gripper: -1 opens, +1 closes
    instruction: str
    suite: str | None = None  # None where the format does not say
    task: int | None = None
    init_state: int | None = None
    success: bool = True
    seed: int | None = None  # of whoever acted, where that is known
    dataset: str = ""  # name that the statistics of its data set are kept under
    origin: str = ""  # file and episode, for messages

    def __len__(self) -> int:
        return len(self.action_TA)

    def rows(self, kept: list[int]) -> Demo:
        """The demonstration with the control steps `kept` alone."""
        frames = self.frame_THWC
        return replace(
            self,
            frame_THWC=replace(frames, steps=frames.steps[kept]) if isinstance(frames, StoredFrames) else frames[kept],
            proprio_TP=self.proprio_TP[kept],
            action_TA=self.action_TA[kept],
        )


def check_pictures(pictures: Iterable[tuple[Any, tuple[int, ...]]], origin: str) -> None:
    """Raise UserError unless all pictures, each told by dtype and shape, are square RGB pictures of one size."""
    found = {(str(dtype), tuple(shape)) for dtype, shape in pictures}
    px = next(iter(found))[1][:1]
    if px == (0,) or found != {("uint8", (*px, *px, 3))}:
        got = ", ".join(f"{dtype} {list(shape)}" for dtype, shape in sorted(found))
        raise UserError(
            f"{origin}: pictures must be square and of one size, uint8 [px, px, 3], got {got} (sft.cameras=[NAME,...])"
        )


def check_demo(demo: Demo) -> None:
    """Raise UserError unless the episode is told in the right types, and every row has numbers that can be learnt
    from."""
    for name, (kinds, called) in FACTS.items():
        value = getattr(demo, name)
        if type(value) not in kinds:  # `isinstance` would take True for 1
            raise UserError(f"{demo.origin}: {name} must be {called}, got {value!r}: drop that episode")
    if not demo.instruction.strip():
        raise UserError(f"{demo.origin}: the instruction is empty: drop that episode")
    for name, value in (("action", demo.action_TA), ("state", demo.proprio_TP)):
        if len(value) != len(demo.frame_THWC) or len(value) == 0:
            raise UserError(
                f"{demo.origin}: {len(value)} rows of {name} for {len(demo.frame_THWC)} pictures: drop that episode"
            )
        if value.ndim != 2 or not value.shape[1]:
            raise UserError(
                f"{demo.origin}: {name} must hold numbers for each row, got {list(value.shape)}: sft.{name}=KEY"
            )
        if not value.isfinite().all():
            row = int((~value.isfinite()).nonzero()[0, 0])
            raise UserError(f"{demo.origin}: {name} holds NaN or infinite values, first in row {row}: "
                            "drop that episode")  # fmt: skip
    if (largest := float(demo.action_TA.abs().max())) > RANGE:
        raise UserError(
            f"{demo.origin}: actions must lie in [-1, 1], the simulator's commands, got {largest:.3g}: sft.action=NAME"
        )


def moving_steps(action_TA: Tensor) -> list[int]:
    """Control steps that do something: the arm moves, or the gripper gets another command than in the step kept last.

    Example: two steps at rest, one that moves, one at rest that closes the gripper -> [2, 3].
    """
    kept: list[int] = []
    for step, action in enumerate(action_TA):
        gripper_stays = not kept or bool(action[-1] == action_TA[kept[-1], -1])
        if float(action[:-1].norm()) >= NOOP or not gripper_stays:
            kept.append(step)
    return kept
